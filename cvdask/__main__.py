"""``python -m cvdask`` is the command ``cvdask``."""

from cvdask.cli import main

if __name__ == "__main__":
    main()
