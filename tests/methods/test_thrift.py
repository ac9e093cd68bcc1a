"""What THRIFT's rows stand for, and settings that a method may have of its own."""

import pytest

import methods  # noqa: F401  (registers)
from core.errors import UserError
from core.method_names import resolve_method
from core.registry import METHODS
from harness.grid import checked_method


def test_a_method_may_have_settings_of_its_own_and_brackets_change_them():
    own = METHODS.get("THRIFT")
    assert own.settings == {"kept": 8, "scales": "log"} and own.options == {"act_order": True, "discount": 0.2}
    other = resolve_method("THRIFT[act_order=false,discount=0.1,kept=16]")
    assert other.settings == {"kept": 16, "scales": "log"} and other.options == {"act_order": False, "discount": 0.1}
    assert resolve_method("THRIFT-native[tune=0]").options["tune"] == 0


def test_damping_discount_and_order_are_told_to_common_rows_whose_quantizer_reads_them():
    assert checked_method("uniform[percdamp=0.1]", "gptq").options == {"percdamp": 0.1}
    assert checked_method("uniform[discount=0.1]", "gptq").options == {"discount": 0.1}
    with pytest.raises(UserError, match=r"percdamp.*--quantizer rtn"):
        checked_method("uniform[percdamp=0.1]", "rtn")
    with pytest.raises(UserError, match="THRIFT tells the solver what --quantizer rtn does not read"):
        checked_method("THRIFT", "rtn")  # its name would promise a discount that no Hessian saw
    with pytest.raises(UserError, match=r"discount.*--quantizer rtn"):
        checked_method("THRIFT[discount=0.5]", "rtn")
    assert checked_method("uniform[act_order=true]", "gptq").options == {"act_order": True}
    with pytest.raises(UserError, match="static_groups"):
        resolve_method("uniform[static_groups=true]")
