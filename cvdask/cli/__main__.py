"""Run the command as a module: ``python -m cvdask.cli``."""

from cvdask.cli import main

if __name__ == "__main__":
    main()
