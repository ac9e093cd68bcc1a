"""The registry: collisions name both owners, a typo suggests the nearest, combinations are checked."""

import pytest

from core.errors import UserError
from core.method_names import resolve_method
from core.plugins import load_plugin
from core.registry import COMMON, METHODS, Registry, method, scorer
from core.settings import SETTINGS


def test_collision_names_both_owners():
    box = Registry("thing")
    box.add("a", test_collision_names_both_owners)
    with pytest.raises(ValueError,
                       match=r"'a' is registered twice: by tests\.core\.test_registry\.test_collision.* and by"):
        box.add("a", lambda: None)


@pytest.mark.parametrize(("typo", "nearest"), [("TAQq", "TAQ"), ("taqos", "TAQoS"), ("unifrom", "uniform"),
                                               ("TAQO_native", "TAQO-native")])
def test_did_you_mean(typo, nearest):
    with pytest.raises(UserError, match=f"unknown method '{typo}' .did you mean '{nearest}'.*; known:"):
        resolve_method(typo)


def test_methods_of_the_brief_are_there():
    for name in ("TAQ", "TAQ-raw", "TAQO", "TAQO-oracle", "TAQoS", "fp16", "uniform", "random", "magnitude",
                 "TAQ-native", "TAQ-raw-native", "TAQO-native", "TAQO-oracle-native", "TAQoS-native"):
        assert name in METHODS


def test_combination():
    spec = resolve_method("TAQ+top_fraction+rtn-float")
    assert (spec.scorer, spec.allocator, spec.quantizer) == ("TAQ", "top_fraction", "rtn-float")
    assert resolve_method("TAQ+knapsack").quantizer == COMMON
    for bad in ("TAQ+knapsak", "TAQ+knapsack+rtm", "TAQ+", "a+b+c+d"):
        with pytest.raises(UserError):
            resolve_method(bad)


def test_misspelt_registrations_are_refused():
    with pytest.raises(ValueError, match="granularity 'row' is not one of"):
        scorer("x", granularity="row")
    with pytest.raises(ValueError, match=r"needs .*are not among"):
        scorer("x", granularity="layer", needs=("calibration",))
    with pytest.raises(ValueError, match="neither a scorer nor an allocator"):
        method("x", scorr="TAQ")
    with pytest.raises(ValueError, match=r"allocator 'top_fraction' and quantizer 'common' read .*not \['fractoin'\]"):
        method("x", scorer="TAQ", allocator="top_fraction", fractoin=0.5)


def test_published_allocations_are_exempt_from_the_budget():
    assert not resolve_method("TAQ+top_fraction+rtn-float").budgeted
    assert resolve_method("TAQ+knapsack+rtn-float").budgeted


def test_plugin_registers_and_bad_plugin_says_why(tmp_path, registries):
    good = tmp_path / "extra.py"
    good.write_text("from core.registry import method, scorer\n@scorer('extra_test', granularity='layer', "
                    "needs=())\ndef f(ctx): ...\n"
                    "method('extra_test', scorer='extra_test')\n")
    load_plugin(str(good))
    assert resolve_method("extra_test").allocator == "knapsack"
    bad = tmp_path / "bad.py"
    bad.write_text("from core.settings import SETTINGS, Setting\n"
                   "SETTINGS.declare([Setting('lost_test', int, 1, 'declared before the file fails')], 'bad')\n"
                   "import no_such_module_at_all\n")
    with pytest.raises(UserError, match="does not load: ModuleNotFoundError"):
        load_plugin(str(bad))
    assert "lost_test" not in SETTINGS
    with pytest.raises(UserError, match="is not a file"):
        load_plugin(str(tmp_path / "none.py"))
