"""The YAML parser of the core against PyYAML, for which upstream's rule files were written."""

import math
import string
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ktransformers import _core

PLAIN_SCALARS = """
yes Yes YES yEs no No NO nO y n Y N true True TRUE tRUE false False FALSE on On ON oN off Off OFF
~ null Null NULL nUll None none nil NaN nan
0 -0 +0 00 007 017 0_17 018 08 09 0o17 0x1F 0X1F 0x_1f -0xff +0xFF 0xG 0b101 0b1_0 0b2 -0b11 0B1
1 -1 +1 +-1 1_000 1__0 _1 1_ 12345678901234567 9223372036854775807 -9223372036854775808 0_ 00_
1:30 -1:30 +1:30 190:20:30 1:60 1:5 1:05 1:005 0:30 01:30 1:2:3:4 1:30.5 190:20:30.15 1:60.5 0:30.5
1: 1_0:30 1:3_0 59:59 1:30. 1:30._
1.0 1. .5 -.5 +.5 +1. -1.5 1.5e3 1.5e+3 1.5E-3 1e3 1e+3 1.e+3 1.0e 1.0e+ .5e+1 .5e1 ._5 .5_ 1_0.0_1
. .. -.e+1 0.1 00.1 1.7976931348623157e+308 4.9e-324 3.14159265358979323846
.inf .Inf .INF .iNF -.inf +.inf .nan .NaN .NAN .nAn -.nan inf -inf
2024-1-1 2024-01 20240131 1-2-3 2024-01-31x 1.2.3 10.0.0.1 v1.0 1,000
cuda cuda:0 cuda:10 cpu -cpu a:b a-b a.b.c ^model$ model.layers.(0|[1-9]) x=y == <<x ~x -- -x
é 日本 1é e1 E5 0x 0b 0b_1 +0b1 - +
""".split()

REFUSED = ["=", "<<", "2024-01-31", "2024-1-2T03:04:05", "0x_", "9223372036854775808"]


def load_ours(text: str):
    return _core.parse_yaml_text(text.encode(), "f").value


def load_pyyaml(text: str):
    return yaml.load(text, Loader=yaml.FullLoader)


def same(ours, theirs) -> bool:
    """Equal in value and in type, everywhere; nan equals nan, -0.0 is not 0.0."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return [*map(repr, ours)] == [*map(repr, theirs)] and all(
            same(ours[key], theirs[key]) for key in ours
        )
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float):
        return (math.isnan(ours) and math.isnan(theirs)) or repr(ours) == repr(theirs)
    return ours == theirs


@pytest.mark.parametrize("scalar", PLAIN_SCALARS)
@pytest.mark.parametrize("frame", ["{}", "- {}", "a: {}\nb: 1", "[{}]", "'{}'", '"{}"'])
def test_scalars_are_typed_as_by_pyyaml(scalar, frame):
    text = frame.format(scalar)
    try:
        theirs = load_pyyaml(text)
    except yaml.YAMLError:
        with pytest.raises(_core.FormatError):
            load_ours(text)
        return
    assert same(load_ours(text), theirs), (load_ours(text), theirs)


@pytest.mark.parametrize("scalar", REFUSED)
def test_scalars_that_are_refused_can_be_quoted(scalar):
    with pytest.raises(_core.FormatError, match=r"^f:1:4: "):
        load_ours(f"a: {scalar}")
    assert load_ours(f"a: '{scalar}'") == {"a": scalar}


@settings(max_examples=3000, deadline=None)
@given(st.text(alphabet="0123456789abefxnXEINF._+-:~ ", min_size=1, max_size=12))
def test_random_plain_scalars(text):
    document = f"k: {text}"
    try:
        theirs = load_pyyaml(document)
    except (yaml.YAMLError, ValueError):
        theirs = None
    try:
        ours = load_ours(document)
    except _core.FormatError as error:
        # Stricter, never looser: what is refused is broken for PyYAML too, or a date, a duplicate
        # or a number that Python alone can hold.
        assert theirs is None or any(
            word in str(error) for word in ("date", "does not fit", "a key must be")
        ), error
        return
    assert theirs is not None and same(ours, theirs), (ours, theirs)


def scalars():
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=True),
        st.text(alphabet=string.printable.strip() + " éß日", max_size=20),
        st.sampled_from(PLAIN_SCALARS),
    )


def documents():
    keys = st.one_of(st.text(string.ascii_letters + "_.", min_size=1), st.integers(-99, 99))
    return st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=20,
    )


@settings(max_examples=500, deadline=None)
@given(documents(), st.sampled_from([None, True, False]), st.integers(2, 6))
def test_documents_written_by_pyyaml(document, flow_style, indent):
    text = yaml.safe_dump(
        document, default_flow_style=flow_style, indent=indent, allow_unicode=True, sort_keys=False
    )
    assert same(load_ours(text), load_pyyaml(text))


LAYOUTS = [
    "- a\n- b\n",
    "a:\n- 1\n- 2\nb: 3",
    "a:\n  - 1\n  - {x: [1, 2], y: }\n",
    "? a\n: 1\n",
    "a: |\n  two\n  lines\n\nb: >-\n  folded\n  text\n",
    "a: 'it''s'\nb: \"tab\\t\\u00e9\\x41\\n\"\n",
    "a: plain\n  continued\nb: x # comment\nc: x#no\n",
    "%YAML 1.1\n---\na: 1\n...\n",
    '---\n- match:\n    name: "^model\\\\.layers\\\\.(0|[1-9])\\\\."\n  recursive: False\n',
    'transfer_map:\n  10: "cpu"\n  0x14: cuda\n',
    "{a: 1, 'b': 2, \"c\": 3,}",
    "a: 1\r\nb:\r\n  - x\r\n",
    "[a, [b, {c: d}], ]",
    "a: b: c",
    "a: [1, 2",
    "\ta: 1",
    "a:\n  b: 1\n c: 2",
    "- a\nb: 1",
    "a: @x",
    "a: `x`",
    "a: %x",
    '"unclosed',
    'a: "unclosed\n',
    "- a: 'unclosed\n  b: 1\n",
    "a: 1\nno colon\n",
    ": no key",
    "a: 1\nb:",
    "a:",
    "a: 'x' y",
    "key with spaces: value with: colon",
    "",
    "# nothing\n",
]


@pytest.mark.parametrize("text", LAYOUTS)
def test_layouts(text):
    try:
        theirs = load_pyyaml(text)
    except yaml.YAMLError:
        with pytest.raises(_core.FormatError, match=r"^f:\d+:\d+: "):
            load_ours(text)
        return
    assert same(load_ours(text), theirs)


def test_places():
    root = _core.parse_yaml_text(b"- match: {name: x}\n  replace:\n    kwargs: [1, 2]\n", "f")
    assert (root.kind, root.line, root.column) == ("sequence", 1, 1)
    (rule,) = root.items()
    (match_key, match), (replace_key, replace) = rule.entries()
    assert (match_key.value, match_key.line, match_key.column) == ("match", 1, 3)
    assert match.value == {"name": "x"} and match.column == 10
    assert (replace_key.line, replace_key.column) == (2, 3)
    ((kwargs_key, kwargs),) = replace.entries()
    assert (kwargs_key.line, kwargs_key.column) == (3, 5)
    assert [(item.value, item.line, item.column) for item in kwargs.items()] == [
        (1, 3, 14),
        (2, 3, 17),
    ]


def test_a_node_outlives_its_root():
    node = _core.parse_yaml_text(b"a: {b: [1, 2, 3]}", "f").entries()[0][1].entries()[0][1]
    assert node.value == [1, 2, 3]


@pytest.mark.parametrize(
    "text, line",
    [
        (b"a: 1\na: 2", "f:2:1: duplicate key a"),
        (b"1: a\n1.0: b", "f:2:1: a key must be"),
        (b"a: &x 1\nb: *x", "f:1:4: anchors"),
        (b"b: *x", "f:1:4: "),
        (b"<<: {a: 1}", "f:1:1: merge keys"),
        (b"a: !!python/object:os.system x", "f:1:4: tags"),
        (b"a: !x {}", "f:1:4: tags"),
        (b"a: !!null", "f:1:4: tags"),
        (b"a: 1\n---\nb: 1", "f:"),
        (b"a: 1\n...\nb: 1", "f:"),
        (b"a: \xff", "f:1:4: not UTF-8"),
        (b"a: \x07", "f:1:4: control character U+0007"),
        ("a: x\u2028y".encode(), "f:1:5: control character U+2028"),
        (b"\xff\xfea\x00", "f:1:1: not UTF-8"),
        (b"{? [a] : 1}", "f:1:"),
        (b'a: "no-break\\_space"', "f:1:4: an escape sequence in the text stands for no UTF-8"),
        (b"a: 1\n'b: c'\n", "f:2:1: "),
    ],
)
def test_refusals_name_the_place(text, line):
    with pytest.raises(_core.FormatError) as caught:
        _core.parse_yaml_text(text, "f")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_size_and_file_errors(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(_core.FormatError, match="larger than 256 KiB"):
        _core.parse_yaml(str(large))
    with pytest.raises(OSError, match="No such file"):
        _core.parse_yaml(str(tmp_path / "none.yaml"))
    with pytest.raises(OSError, match="directory"):
        _core.parse_yaml(str(tmp_path))
    small = tmp_path / "small.yaml"
    small.write_text("- é: 1\n")
    assert _core.parse_yaml(str(small)).value == [{"é": 1}]


@pytest.mark.parametrize(
    "unit", ["[", "{", "- ", "? ", "a: ", "'", '"', "[{a: ", "- - ", "|\n", "a:\n "]
)
def test_hostile_repetition_is_quick(unit):
    text = (unit * (256 * 1024 // len(unit)))[: 256 * 1024].encode()
    start = time.process_time()
    try:
        _core.parse_yaml_text(text, "f")
    except _core.FormatError:
        pass
    assert time.process_time() - start < 5


@settings(max_examples=1500, deadline=None)
@given(st.text(alphabet="ab1 -:?[]{},'\"#|>&*!%@\n\t", max_size=40))
def test_random_text_is_read_alike_or_refused(text):
    """Whatever both accept they read alike."""
    try:
        ours = load_ours(text)
    except _core.FormatError:
        return
    try:
        theirs = load_pyyaml(text)
    except (yaml.YAMLError, ValueError, TypeError):
        return
    assert same(ours, theirs), (ours, theirs)
