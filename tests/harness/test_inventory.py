"""What a cache holds, and that dropping what finished cells do not need changes nothing of them."""

import pytest

from core.errors import UserError
from core.locks import lease
from harness.cli.main import main
from harness.store.inventory import DROPPABLE, UNFINISHED, holdings, prune


@pytest.fixture(scope="module")
def ran(tiny_folder, tmp_path_factory):
    """A grid whose row compares with a quantized model: its folder and its flags."""
    root = tmp_path_factory.mktemp("inventory")
    flags = ["--run_type", "demo", "--model", str(tiny_folder), "--dataset", "trivia_qa", "--method", "TaCQ",
             "--avg_bits", "4.75", "--quantizer", "rtn", "--eval_size", "8", "--calib_size", "8",
             "--calib_tokens", "256", "--device", "cpu", "--results_dir", str(root / "r"),
             "--cache_dir", str(root / "c")]
    assert main(flags) == 0
    return root, flags


def files(root) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "r").glob("*.json*"))}


def test_a_pruned_cache_serves_finished_cells_and_makes_the_rest_again(ran, capfd):
    root, flags = ran
    before, cache = files(root), root / "c"
    stages = {stage for _, stage in holdings(cache)}
    assert {"gradients", "scores", "corrupted", "plan", "samples"} <= stages
    assert main(["--cache_info", "--cache_dir", str(cache)]) == 0
    shown = capfd.readouterr().out
    assert "tiny-llama" in shown and "gradients" in shown and "stays" in shown
    assert main(["--cache_prune", "--dry_run", "--cache_dir", str(cache)]) == 0
    assert "would go" in capfd.readouterr().out and {stage for _, stage in holdings(cache)} == stages
    (cache / ".damaged-0123").mkdir()
    (cache / ".partial" / "4567").mkdir(parents=True)
    assert main(["--cache_prune", "--cache_dir", str(cache)]) == 0
    left = {stage for _, stage in holdings(cache)}
    assert not left & set(DROPPABLE) and {"plan", "samples", UNFINISHED} <= left
    capfd.readouterr()
    assert main(flags) == 0
    assert "Loading" not in capfd.readouterr().err and files(root) == before
    assert main([*flags, "--avg_bits", "4.75", "5.5"]) == 0  # a new budget needs scores: made again
    assert "gradients" in {stage for _, stage in holdings(cache)}
    assert all(files(root)[name] == data for name, data in before.items())


def test_only_what_can_go_goes_and_nobody_is_disturbed(ran):
    cache = ran[0] / "c"
    with pytest.raises(UserError, match="'samples' is nothing that can go; name any of: gradients"):
        prune(cache, ["samples"])
    held = lease(cache / ".leases" / "89ab")
    held.acquire(timeout=0)
    try:
        with pytest.raises(UserError, match="a run is making 89ab"):
            prune(cache)
    finally:
        held.release()
    assert prune(cache, [UNFINISHED]).keys() <= {UNFINISHED}


def test_a_cache_that_is_not_there(tmp_path, capfd):
    assert main(["--cache_info", "--cache_dir", str(tmp_path / "no")]) == 2
    assert "is no folder" in capfd.readouterr().err
    assert main(["--cache_info", "--list"]) == 2
