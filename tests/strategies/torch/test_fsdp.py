"""``fsdp`` with real ranks: it trains what one process trains, and refuses what it cannot."""

import pytest

from trainkit.errors import ExitCode
from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")

from tests.strategies.torch import fsdp_programs as programs  # noqa: E402

PRELOAD = ("torch", "torch.distributed.fsdp", "torch._dynamo")


def ranks(program, n, *args, **kwargs):
    results = run_ranks(program, n, *args, kwargs=kwargs, timeout=120, preload=PRELOAD)
    return [result.value for result in results]


def assert_alike(found, expected, *, rel):
    for key in ("losses", "norms"):
        assert found[key] == pytest.approx(expected[key], rel=rel), key
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        mine, theirs = torch.tensor(found["weights"][name]), torch.tensor(value)
        # of the largest element: a sum that is nearly 0 has no relative accuracy
        assert (mine - theirs).abs().max() <= rel * theirs.abs().max(), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.world_size(2)
def test_two_ranks_train_what_one_process_trains(optimizer):
    """In fp32, with clipping. Ranks add the gradients of 12 rows in another order, so that they
    differ by a few 2⁻²⁴ (6e-8); ten steps and a division by small moments (AdamW) make that
    larger, by less than 1000."""
    settings = {"optimizer": optimizer, "clip": 3.0}
    (expected,) = ranks(programs.trains, 1, "single", **settings)
    assert min(expected["norms"]) < 3.0 < max(expected["norms"]), "clips some steps, not all"
    for found in ranks(programs.trains, 2, "fsdp", **settings):
        assert_alike(found, expected, rel=5e-5 if optimizer == "adamw" else 5e-6)
        assert len(found["sharded"]) == 4  # three blocks and the model


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.world_size(3)
def test_in_double_precision_nothing_else_differs(n):
    """The same in fp64, where rounding leaves 1e-16: a wrong mean or scale would be seen. The
    norm comes back in fp32."""
    settings = {"dtype": "float64", "optimizer": "adamw"}
    (expected,) = ranks(programs.trains, 1, "single", **settings)
    for found in ranks(programs.trains, n, "fsdp", **settings):
        assert_alike(found, expected, rel=1e-11)


@pytest.mark.world_size(2)
def test_each_rank_holds_its_part():
    (whole,) = ranks(programs.trains, 1, "single", steps=1)
    parts = [found["held"] for found in ranks(programs.trains, 2, "fsdp", steps=1)]
    assert sum(parts) == whole["held"]
    assert max(parts) <= 0.53 * whole["held"]  # odd numbers of rows


@pytest.mark.world_size(4)
def test_replicas_of_shards_train_the_same():
    (expected,) = ranks(programs.trains, 1, "single", dtype="float64")
    found = ranks(programs.trains, 4, "fsdp", options={"replicas": 2}, dtype="float64")
    for one in found:
        assert_alike(one, expected, rel=1e-11)
    assert sum(one["held"] for one in found) == 2 * expected["held"]


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_whole_weights_may_stay_until_the_backward_pass():
    settings = {"dtype": "float64", "clip": 0.5}
    expected = ranks(programs.trains, 2, "fsdp", **settings)
    found = ranks(programs.trains, 2, "fsdp", options={"reshard_after_forward": False}, **settings)
    assert found == expected


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
@pytest.mark.world_size(2)
def test_activation_checkpointing_changes_no_bit(strategy):
    """With dropout too, whose masks are drawn again as they were; blocks run twice a step."""
    n = 1 if strategy == "single" else 2
    plain = ranks(programs.trains, n, strategy, dropout=0.3)
    again = ranks(
        programs.trains, n, strategy, dropout=0.3, setup={"activation_checkpointing": True}
    )
    for one, other in zip(plain, again, strict=True):
        assert one["losses"] == other["losses"]
        assert one["weights"] == other["weights"]
        assert one["calls"] == [10, 10, 10]
        assert other["calls"] == [20, 20, 20]


@pytest.mark.world_size(2)
def test_bf16_computes_in_bf16_and_keeps_parameters_in_fp32():
    """bf16 has 8 bits (2⁻⁹ = 0.2 %): losses are near those of fp32 and not equal."""
    (expected,) = ranks(programs.trains, 1, "single")
    for found in ranks(programs.trains, 2, "fsdp", options={"precision": "bf16"}):
        assert found["dtype"] == "torch.bfloat16"
        assert found["losses"] != expected["losses"]
        assert found["losses"] == pytest.approx(expected["losses"], rel=0.03)
        kept = torch.tensor(found["weights"]["last.weight"])
        assert (kept != kept.bfloat16().double()).any(), "parameters were rounded to bf16"


@pytest.mark.parametrize(("n", "options"), [(2, {}), (3, {}), (4, {"replicas": 2})])
@pytest.mark.world_size(4)
def test_clipping_is_by_the_norm_of_all_parts(n, options):
    for found in ranks(programs.clips, n, options):
        assert found["measured"] == pytest.approx(found["expected"], rel=1e-6)
        assert found["returned"] == found["measured"] > 0.5
        assert found["kind"] == "Tensor"
        assert found["off"] < 1e-6
        # Parts are added in another order than the whole: what that rounds to is the processor's.
        assert found["after"] == pytest.approx(found["below"], rel=1e-6)
        assert found["below"] == pytest.approx(0.5, rel=1e-5)


@pytest.mark.world_size(2)
def test_clipping_takes_plain_gradients_beside_sharded_ones():
    """Linear(4, 1) on ones has gradients of 1, five of them; three plain ones are 2."""
    expected = (5 * 1 + 3 * 4) ** 0.5
    for norm, plain, sharded in ranks(programs.mixed_gradients, 2):
        assert norm == pytest.approx(expected, rel=1e-6)
        assert plain == pytest.approx([2 / expected] * 3, rel=1e-5)
        assert sharded[0] == pytest.approx([1 / expected] * 4, rel=1e-5)


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.world_size(2)
def test_accumulated_gradients_are_those_of_the_larger_batch(strategy):
    settings = {"accumulate": 3, "clip": 0.5, "dtype": "float64", "steps": 4}
    (expected,) = ranks(programs.trains, 1, "single", **settings)
    for found in ranks(programs.trains, 2, strategy, **settings):
        assert_alike(found, expected, rel=1e-6)  # clip's norm is fp32 under fsdp


@pytest.mark.world_size(2)
def test_no_sync_sends_gradients_once():
    """Of each unit, three blocks and the model, however many micro-batches there are."""
    for num_micro in (1, 3):
        assert ranks(programs.accumulates, 2, num_micro) == [4, 4]
    assert ranks(programs.accumulates, 2, 3, no_sync=False) == [12, 12]


@pytest.mark.world_size(2)
def test_all_ranks_get_the_values_of_rank_0():
    (own_0, found_0), (own_1, found_1) = ranks(programs.values_of_rank_0, 2)
    assert own_0 != own_1
    assert found_0 == found_1 == own_0


@pytest.mark.parametrize("options", [{}, {"reshard_after_forward": False}])
@pytest.mark.world_size(2)
def test_an_evaluation_anywhere_changes_nothing(options):
    """Weights that it left whole would be what an optimizer is made of, and what clipping reads."""
    for plain, with_evaluations in ranks(programs.evaluates, 2, options):
        assert with_evaluations == plain


@pytest.mark.world_size(2)
def test_whole_parameters_are_let_go():
    assert ranks(programs.lets_go, 2) == [0, 0]


@pytest.mark.parametrize(
    ("program", "n", "code", "words"),
    [
        ("different_models", 2, ExitCode.ENVIRONMENT, ["rank 1", "not that of rank 0"]),
        ("batch_norm", 2, ExitCode.ENVIRONMENT, ["1 is a BatchNorm1d", "SyncBatchNorm"]),
        ("reduces_a_shard", 2, ExitCode.ENVIRONMENT, ["full_tensor()"]),
        ("replicas_that_do_not_divide", 3, ExitCode.ENVIRONMENT, ["replicas=2", "3 rank(s)"]),
    ],
)
@pytest.mark.world_size(3)
def test_what_it_cannot_do_is_one_message(program, n, code, words):
    """On each rank, but for one that is so late that it only sees another leave (138)."""
    found = run_ranks(getattr(programs, program), n, timeout=120, preload=PRELOAD, check=False)
    assert {result.exit_code for result in found} <= {code, ExitCode.RETRYABLE}
    refused = [result for result in found if result.exit_code == code]
    assert refused
    for result in refused:
        assert all(word in result.stderr for word in words), result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, {}), (1, {})),
        ((1, {}), (2, {})),
        ((2, {}), (3, {})),
        pytest.param((4, {"replicas": 2}), (2, {}), marks=pytest.mark.slow),
    ],
    ids=["2-1", "1-2", "2-3", "2x2-2"],
)
@pytest.mark.world_size(4)
def test_another_number_of_ranks_goes_on_with_the_same_bits(tmp_path, first, then):
    saved = ranks(programs.saves, first[0], str(tmp_path), options=first[1])
    restored = ranks(programs.saves, then[0], str(tmp_path), options=then[1], at=3)
    after = saved[0][1]
    assert any(key.endswith("exp_avg_sq") for key in after)
    assert all(one[1] == after for one in saved)
    assert all(one[0] == after for one in restored)
    assert all(one[1] != after for one in restored), "it trains on"


@pytest.mark.parametrize("options", ["single", {}], ids=["single-fsdp", "fsdp-fsdp"])
@pytest.mark.world_size(2)
def test_a_save_right_after_an_evaluation_is_a_save(tmp_path, options):
    """An evaluation leaves weights whole that belong to no block; also with the optimizer first."""
    settings = {"optimizer_first": True, "evaluate": True}
    n = 1 if options == "single" else 2
    saved = ranks(programs.saves, n, str(tmp_path), options=options, **settings)
    restored = ranks(programs.saves, 2, str(tmp_path), options={}, at=3, **settings)
    assert all(one[0] == saved[0][1] for one in restored)
