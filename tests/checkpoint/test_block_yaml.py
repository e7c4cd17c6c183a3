"""The reader of NeMo's configurations."""

from hypothesis import given
from hypothesis import strategies as st

from fastglow.checkpoint.block_yaml import read_mappings

NAMES = st.text("ab_.9", min_size=1, max_size=4).map("x".__add__)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.sampled_from(["hann", "a.b.C", "${x.y}"])
)
TREES = st.recursive(
    st.dictionaries(NAMES, SCALARS, min_size=1, max_size=4),
    lambda inner: st.dictionaries(
        NAMES, inner | SCALARS | st.lists(st.just("- x: y"), min_size=1), min_size=1, max_size=4
    ),
    max_leaves=8,
)


def without_lists(tree):
    if isinstance(tree, dict):
        return {name: None if isinstance(value, list) else without_lists(value) for name, value in tree.items()}
    return tree


@given(TREES)
def test_nested_mappings(build, tree):
    assert read_mappings(build.block_yaml(tree)) == without_lists(tree)


@given(st.text())
def test_anything_is_read(text):
    assert isinstance(read_mappings(text), dict)


def test_scalars_and_what_is_passed_over():
    text = """
# a comment
number: 1.0e-05  # and another
negative: -11.52
quoted: 'a: b'
double: "x"
long: one line
  and: its continuation
block: |
  hidden: 1
tagged: !!python/object/apply:os.system
  args: [1]
list:
- name: x
  hidden: 2
empty:
part:
  inner:
    deep: ~
  after: yes
last: 3
"""
    assert read_mappings(text) == {
        **{"number": 1e-5, "negative": -11.52, "quoted": "a: b", "double": "x", "long": "one line", "block": "|"},
        **{"tagged": "!!python/object/apply:os.system", "list": None, "empty": None},
        **{"part": {"inner": {"deep": None}, "after": "yes"}, "last": 3},
    }
