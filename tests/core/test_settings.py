"""Settings of methods: declared once with type, range and help; read from flags and from brackets; a misspelt one is
told.
"""

import pytest

import methods  # noqa: F401  (registers the methods)
from core.errors import UserError
from core.method_names import readable, resolve_method
from core.registry import ALLOCATORS, COMMON, METHODS, SCORERS, method, scorer
from core.settings import SETTINGS, Setting


@pytest.mark.parametrize(("given", "allowed"), [
    (dict(kind=int, default=3, low=1), [1, 7]), (dict(kind=float, default=0.5, low=0, high=1), [0, 1.0, 0.25]),
    (dict(kind=str, default="a", choices=("a", "b")), ["b"]), (dict(kind=bool, default=False), [True])])
def test_values_of_the_type_and_range_are_taken(given, allowed):
    setting = Setting("x", help="an example", **given)
    assert [setting.checked(value) for value in allowed] == allowed


@pytest.mark.parametrize(("given", "value", "said"), [
    (dict(kind=int, default=3, low=1), 0, "--x is 0; it must be at least 1"),
    (dict(kind=int, default=3), 1.5, "--x is 1.5; give a whole number"),
    (dict(kind=int, default=3), True, "--x is True; give a whole number"),
    (dict(kind=float, default=0.5, low=0, high=1), 2, "--x is 2; it must be from 0 to 1"),
    (dict(kind=float, default=0.5), float("nan"), "--x is nan; it must be finite"),
    (dict(kind=str, default="a", choices=("a", "b")), "c", "--x is 'c'; use one of: a, b"),
    (dict(kind=bool, default=False), "yes", "--x is 'yes'; give true or false")])
def test_others_are_one_sentence(given, value, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        Setting("x", help="an example", **given).checked(value)


def test_a_declaration_must_be_whole_and_its_default_allowed():
    for wrong in (dict(name="not a name"), dict(kind=list), dict(help=""), dict(default="three")):
        with pytest.raises((ValueError, UserError)):
            Setting(**dict(name="x", kind=int, default=1, help="an example") | wrong)
    with pytest.raises(UserError):
        Setting("x", int, 0, "an example", low=1)


def test_one_name_is_one_setting():
    with pytest.raises(ValueError, match="scorer 'a_test' declares setting 'kl_docs' otherwise"):
        scorer("a_test", granularity="layer", params=(Setting("kl_docs", int, 3, "other"),))
    with pytest.raises(ValueError, match="params name 'kl_doc', which is no setting and no fact"):
        scorer("a_test", granularity="layer", params=("kl_doc",))
    assert "a_test" not in SCORERS


def test_brackets_are_settings_of_one_row_in_one_order():
    spec = resolve_method("TaCQ[corrupt=rtn, calib=c4]")
    assert spec.name == "TaCQ[calib=c4,corrupt=rtn]" == resolve_method("TaCQ[calib=c4,corrupt=rtn]").name
    assert spec.settings == {"calib": "c4",
                             "corrupt": "rtn"} and spec.plain == "TaCQ" and METHODS.get("TaCQ").settings == {}
    assert resolve_method("TaCQ[calib_tokens=1000]").settings == {"calib_tokens": 1000}
    assert resolve_method("TaCQ-native[published=true]").settings == {"published": True}
    combined = resolve_method("TAQ+knapsack+rtn[score_docs=8]")
    assert (combined.scorer, combined.quantizer, combined.settings) == ("TAQ", "rtn", {"score_docs": 8})
    assert resolve_method("uniform[calib=c4]").quantizer == COMMON  # whatever solves common rows reads it


@pytest.mark.parametrize(("name", "said"), [
    ("TaCQ[corupt=rtn]", "TaCQ reads no setting 'corupt' .did you mean 'corrupt'"),
    ("TaCQ[kl_docs=3]", "TaCQ reads no setting 'kl_docs'"),
    ("TaCQ[corrupt=awq]", r"TaCQ\[corrupt\] is 'awq'; use one of: gptq, rtn"),
    ("TaCQ[calib=c5]", "unknown --calib 'c5'"),
    ("TaCQ[calib_tokens=many]", r"TaCQ\[calib_tokens\] is 'many'; give a whole number"),
    ("TAQ-native[fraction=2]", r"TAQ-native\[fraction\] is 2; it must be from 0 to 1"),
    ("TAQ-native[hihg=6]", r"TAQ-native reads no setting 'hihg' \(did you mean 'high'\?\)"),
    ("TaCQ[search=none]", "TaCQ reads no setting 'search'"),  # common rows have one quantizer, and it is the grid's
    ("TaCQ[calib=c4", "brackets that are not"),
    ("TaCQ[]", "brackets that are not"), ("TaCQ[calib]", "has 'calib' where setting=value belongs"),
    ("TaCQ[calib=c4,calib=c4]", "names calib twice"),
    ("equal[calib=c4]x", "brackets that are not"), ("bnb-nf4[calib=c4]", "bnb-nf4 reads no setting 'calib'")])
def test_brackets_that_mean_nothing_are_one_sentence(name, said):
    with pytest.raises(UserError, match=said):
        resolve_method(name)


def test_every_setting_is_read_by_a_method_and_says_so():
    read = {name for method in METHODS for names in readable(METHODS.get(method)) for name in names}
    read |= {"ppl_window"}  # of the perplexity data sets
    read |= {"lm_eval_max_length"}  # of lm_eval:NAME data sets
    read |= {name for allocator in ALLOCATORS for name in ALLOCATORS.get(allocator).options}  # SliM-LLM+balanced
    assert {setting.name for setting in SETTINGS} <= read
    for setting in SETTINGS:
        assert setting.help and setting.help[0].islower() and not setting.help.endswith("."), setting.name


def test_a_methods_own_options_are_checked_where_it_is_registered():
    with pytest.raises(UserError, match="method a_test: fraction is 3; it must be from 0 to 1"):
        method("a_test", scorer="TAQ", allocator="top_fraction", quantizer="rtn-float", native=True, fraction=3)
    assert "a_test" not in METHODS
