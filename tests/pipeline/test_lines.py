"""The line of every key, also behind strings and arrays that look like keys."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from cvdask.pipeline.lines import find_lines

TEXT = '''top = 1

[run]  # first
out = "a # [no] = 2"
list = [
  1,
  [2, 3],
  "x = 1",
]
"quoted" = {a = 1, b = "]"}
long = """
[table]
key = 1
"""
literal = 'C:\\'
after = true

[[sample]]
name = "a"
[[sample]]
    name = 'b'
'''


def test_lines_of_a_file_with_everything():
    assert find_lines(TEXT) == {
        ("", 0, "top"): 1,
        ("run", 0): 3,
        ("run", 0, "out"): 4,
        ("run", 0, "list"): 5,
        ("run", 0, "quoted"): 10,
        ("run", 0, "long"): 11,
        ("run", 0, "literal"): 15,
        ("run", 0, "after"): 16,
        ("sample", 0): 18,
        ("sample", 0, "name"): 19,
        ("sample", 1): 20,
        ("sample", 1, "name"): 21,
    }


VALUES = st.sampled_from(
    ["1", '"x = 2"', "'[a]'", "[1, 2]", "[\n  [1],\n  2,\n]", '"""\n[b]\ny = 1\n"""', "{c = 1}",
     "'''\n'x' = \"\n'''", "[ # ]\n 1 ]", "true # = [", '"\\"]"']
)  # fmt: skip


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(VALUES, st.integers(0, 2)), max_size=4)),
        max_size=4,
    )
)
def test_every_key_is_found_where_it_was_written(tables: list):
    lines: list[str] = []
    expected: dict[tuple[str | int, ...], int] = {}
    n_samples = 0
    for number, (is_sample, keys) in enumerate(tables):
        name, index = ("sample", n_samples) if is_sample else (f"table{number}", 0)
        n_samples += is_sample
        expected[name, index] = len(lines) + 1
        lines.append(f"[[{name}]]" if is_sample else f"[{name}]")
        for k, (value, n_blank) in enumerate(keys):
            lines += [""] * n_blank
            expected[name, index, f"key{k}"] = len(lines) + 1
            lines += f"key{k} = {value}".split("\n")
    text = "\n".join(lines)
    tomllib.loads(text)
    assert find_lines(text) == expected
