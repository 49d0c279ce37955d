"""What the launchers compile: (name, kernel, signature, constants, num_warps, options) for checks without a GPU."""

from collections.abc import Iterator
from typing import Any

from pgraft_fast_kernels.anderson_mix import _anderson_gram_fwd_kernel, _anderson_mix_fwd_kernel
from pgraft_fast_kernels.fixed_point_update import _fixed_point_residual_kernel, _fixed_point_update_fwd_kernel
from pgraft_fast_kernels.gather_rows import _gather_rows_fwd_kernel
from pgraft_fast_kernels.partial_noise import _partial_noise_fwd_kernel
from pgraft_fast_kernels.parts import MOST_PARTS
from pgraft_fast_kernels.philox_normal import _philox_normal_fwd_kernel
from pgraft_fast_kernels.reward_filter import _reward_filter_fwd_kernel
from pgraft_fast_kernels.reward_pack import _reward_pack_fwd_kernel
from pgraft_fast_kernels.reward_wide import OTHER_WARPS, PER_WARP, SEARCH_WARPS, _reward_wide_fwd_kernel
from pgraft_fast_kernels.solver_step import _solver_step_fwd_kernel
from pgraft_fast_kernels.solver_step_rank import _solver_step_count_kernel
from pgraft_fast_kernels.solver_step_sample import _solver_step_log_prob_kernel, _solver_step_sample_fwd_kernel
from pgraft_fast_kernels.solver_step_spread import _solver_step_spread_kernel
from pgraft_fast_kernels.weighted_mse import (
    _weighted_mse_bwd_kernel,
    _weighted_mse_fwd_kernel,
    _weighted_mse_mean_kernel,
)

Case = tuple[str, Any, dict[str, str], dict[str, Any], int, dict[str, Any]]

DTYPES = ("fp32", "fp16", "bf16")
UNFUSED = {"enable_fp_fusion": False}
KEYS = {"key_low": "i32", "key_high": "i32"}


def _case(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, options: Any) -> Case:
    """Types in the kernel's order, "constexpr" for what is in constants (an absent tensor is the constant None)."""
    signature = {key: "constexpr" if key in constants else types[key] for key in kernel.arg_names}
    return name, kernel, signature, constants, warps, options


def _absent(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names)


def cases() -> Iterator[Case]:
    """Every kernel, in its types and its options of note."""
    for dtype in DTYPES:
        yield from _streaming(dtype)
        yield from _solver(dtype)
    yield from _reward()
    words = {"index_ptr": "*i64", "x_ptr": "*i64", "rows_ptr": "*i64", "other_ptr": "*i16", "other_rows_ptr": "*i16"}
    words |= dict.fromkeys(("n_rows", "width", "other_width", "n_blocks"), "i32")
    tile = {"BLOCK_ROWS": 1, "BLOCK": 1024}
    yield _case("gather_rows", _gather_rows_fwd_kernel, words, tile, 4, {})
    tile = {"BLOCK_ROWS": 8, "BLOCK": 64, **_absent("other_ptr", "other_rows_ptr")}
    yield _case("gather_rows/short", _gather_rows_fwd_kernel, words, tile, 4, {})
    types = {"next_ptr": "*fp32", "residual_ptr": "*fp32", "y_ptr": "*fp32", "ridge": "fp32"}
    types |= {"gram_ptr": "*fp64", "size": "i32", "stride": "i64", "part": "i32"}
    for m in (5, 8):
        constants = {"M": m, "TILE": 8, "BLOCK": 256, "PARTS": 4}
        yield _case(f"anderson_mix/{m}", _anderson_mix_fwd_kernel, types, constants | _absent("gram_ptr"), 4, UNFUSED)
        constants = constants | {"PARTS": MOST_PARTS}
        yield _case(f"anderson_mix/split/{m}", _anderson_mix_fwd_kernel, types, constants, 4, UNFUSED)
        yield _case(f"anderson_gram/{m}", _anderson_gram_fwd_kernel, types, constants, 4, UNFUSED)


def _streaming(dtype: str) -> Iterator[Case]:
    state = f"*{dtype}"
    sizes = {"size": "i32", "n_blocks": "i32"}
    types = {"id_ptr": "*i64", "step_ptr": "*i64", "out_ptr": state, **KEYS, "n_values": "i32", "n_blocks": "i32"}
    constants = {"NORMAL": True, "BLOCK": 1024}
    yield _case(f"philox_normal/{dtype}", _philox_normal_fwd_kernel, types, constants, 4, UNFUSED)
    if dtype == "fp32":
        types, constants = {**types, "out_ptr": "*i32"}, {"NORMAL": False, "BLOCK": 1024}
        yield _case("philox_words", _philox_normal_fwd_kernel, types, constants, 4, UNFUSED)

    types = dict.fromkeys(("x_ptr", "noise_ptr", "x_s_ptr", "target_ptr"), state) | sizes | KEYS
    types |= {"levels_ptr": "*fp64", "id_ptr": "*i64", "step_ptr": "*i64", "weight_ptr": "*fp32"}
    types |= {"alpha_cut_bits": "i64", "sigma_cut_bits": "i64"}
    drawn, with_noise = _absent("noise_ptr"), _absent("id_ptr", "step_ptr")
    yield _case(f"partial_noise/{dtype}", _partial_noise_fwd_kernel, types, {"BLOCK": 1024, **drawn}, 4, UNFUSED)
    if dtype == "bf16":
        yield _case("partial_noise/given", _partial_noise_fwd_kernel, types, {"BLOCK": 1024, **with_noise}, 4, UNFUSED)

    types = {"out_ptr": state, "target_ptr": "*fp32", "grad_out_ptr": state, **sizes}
    types |= dict.fromkeys(("weight_ptr", "loss_ptr", "grad_ptr"), "*fp32")
    types |= {"sum_ptr": "*fp64", "part": "i32"}
    unsplit, many = {"PARTS": 4, "SPLIT": False, **_absent("sum_ptr")}, {"PARTS": MOST_PARTS, "SPLIT": True}
    for name, constants in (("weighted_mse", unsplit), ("weighted_mse/split", many)):
        yield _case(f"{name}/{dtype}", _weighted_mse_fwd_kernel, types, constants | {"BLOCK": 2048}, 8, UNFUSED)
    if dtype == "fp32":
        yield _case("weighted_mse_mean", _weighted_mse_mean_kernel, types, {"PARTS": MOST_PARTS}, 1, {})
    yield _case(f"weighted_mse_grad/{dtype}", _weighted_mse_bwd_kernel, types, {"BLOCK": 1024}, 4, UNFUSED)

    types = dict.fromkeys(("x_ptr", "v_ptr", "y_ptr", "y_next_ptr"), state)
    types |= {"residual_ptr": "*fp32", "sum_ptr": "*fp64", "h": "fp32", "size": "i32", "part": "i32"}
    for name, constants in (("fixed_point_update", unsplit), ("fixed_point_update/split", many)):
        yield _case(f"{name}/{dtype}", _fixed_point_update_fwd_kernel, types, constants | {"BLOCK": 1024}, 4, UNFUSED)
    if dtype == "fp32":
        yield _case("fixed_point_residual", _fixed_point_residual_kernel, types, {"PARTS": MOST_PARTS}, 1, {})


def _solver(dtype: str) -> Iterator[Case]:
    names = ("x_ptr", "out_ptr", "null_ptr", "previous_ptr", "noise_ptr", "x_s_ptr", "x_0_ptr", "x_cut_ptr")
    types = dict.fromkeys(names, f"*{dtype}") | KEYS
    types |= {"table_ptr": "*fp32", "step_ptr": "*i64", "id_ptr": "*i64", "log_prob_ptr": "*fp32"}
    types |= dict.fromkeys(("guidance", "clip", "rescale", "ratio", "limit"), "fp32")
    types |= dict.fromkeys(("sum_ptr", "square_ptr"), "*fp64") | {"counts_ptr": "*i32"}
    types |= dict.fromkeys(("size", "channels", "n_blocks", "part", "digit"), "i32") | {"total": "i64"}
    drawn = _absent("noise_ptr", "channels")
    plain = drawn | _absent("null_ptr", "previous_ptr", "x_0_ptr", "x_cut_ptr", "id_ptr")
    flat: dict[str, dict[str, Any]] = {
        "plain": plain | {"CLIP": False},
        "full": drawn | {"CLIP": True},
        "channels_last": _absent("noise_ptr") | {"CLIP": True},
        "given_noise": _absent("channels") | {"CLIP": True},
    }
    for name, constants in flat.items():
        if dtype == "fp16" and name != "full":
            continue
        constants["BLOCK"] = 1024
        yield _case(f"solver_step/{name}/{dtype}", _solver_step_fwd_kernel, types, constants, 4, UNFUSED)
    on, off = {"RESCALE": True, "THRESHOLD": True}, {"RESCALE": False, "THRESHOLD": False}
    unsplit = _absent("sum_ptr", "counts_ptr", "square_ptr") | {"PARTS": 4, "SPLIT": False}
    many = _absent("log_prob_ptr") | {"PARTS": MOST_PARTS, "SPLIT": True}
    by_sample: dict[str, dict[str, Any]] = {"full": drawn | unsplit | on, "split": drawn | many | on}
    if dtype == "fp32":
        by_sample["log_prob"] = plain | unsplit | off
        by_sample["clip_rescale"] = drawn | unsplit | _absent("log_prob_ptr") | off | {"RESCALE": True}
        by_sample["channels_last"] = _absent("noise_ptr") | unsplit | on
    for name, constants in by_sample.items():
        constants |= {"CLIP": "clip" in name, "BLOCK": 1024}
        yield _case(f"solver_step_sample/{name}/{dtype}", _solver_step_sample_fwd_kernel, types, constants, 8, UNFUSED)
    constants = {"PARTS": MOST_PARTS, "BLOCK": 1024}
    yield _case(f"solver_step_spread/{dtype}", _solver_step_spread_kernel, types, constants, 8, UNFUSED)
    constants = constants | {"RESCALE": True}
    yield _case(f"solver_step_count/{dtype}", _solver_step_count_kernel, types, constants, 8, UNFUSED)
    if dtype == "fp32":
        constants = {"PARTS": MOST_PARTS}
        yield _case("solver_step_log_prob", _solver_step_log_prob_kernel, types, constants, 1, UNFUSED)


def _reward() -> Iterator[Case]:
    types = {"offsets_ptr": "*i64", "id_ptr": "*i64", "copies_ptr": "*i64", "r_max_ptr": "*fp64", "mask_ptr": "*u8"}
    types |= {"group_count_ptr": "*i64", "end_ptr": "*i64", "index_ptr": "*i64", "groups": "i32", "width": "i32"}
    types |= {
        "k": "i32",
        "temperature": "i64",
        "threshold": "i64",
        **KEYS,
        "step": "i32",
        "served": "i32",
        "capacity": "i32",
    }
    single, counted, searched = (
        {"ONE": True, "COUNT": False},
        {"ONE": False, "COUNT": True},
        {"ONE": False, "COUNT": False},
    )
    dense = _absent("offsets_ptr", "id_ptr", "copies_ptr", "r_max_ptr")
    narrow, narrow_id = {"BLOCK_GROUPS": 32, "BLOCK": 16}, {"BLOCK_GROUPS": 16, "BLOCK": 16}
    wide, widest = {"BLOCK_GROUPS": 1, "BLOCK": 1024}, {"BLOCK_GROUPS": 1, "BLOCK": 4096}
    with_id, with_all = _absent("copies_ptr", "r_max_ptr"), _absent("r_max_ptr")
    with_top = _absent("copies_ptr")
    chosen: list[tuple[int, str, str, dict[str, Any], int]] = [
        (0, "best_of_n", "fp32", dense | single | narrow, 1),
        (0, "counted", "fp32", with_id | counted | narrow_id, 1),
        (0, "searched", "fp32", dense | searched | wide, 2),
        (0, "searched_id", "fp64", with_id | searched | widest, 16),
        (1, "classical", "fp32", dense | counted | narrow_id, 1),
        (1, "classical", "fp64", with_top | searched | wide, 4),
        (2, "threshold", "fp32", dense | counted | narrow, 1),
        (3, "preference", "fp32", dense | counted | narrow, 1),
        (4, "binary", "fp32", with_all | counted | narrow_id, 1),
        (4, "binary", "fp64", with_all | searched | wide, 4),
    ]
    for rule, name, dtype, constants, warps in chosen:
        place_bits = constants["BLOCK"].bit_length() - 1 if "id_ptr" in constants else 64
        constants |= {"RULE": rule, "BEST_IF_EMPTY": "id_ptr" not in constants}
        constants |= {"KEY_BITS": int(dtype[2:]), "PLACE_BITS": place_bits}
        reward_types = types | {"reward_ptr": f"*{dtype}"}
        yield _case(f"reward_filter/{name}/{dtype}", _reward_filter_fwd_kernel, reward_types, constants, warps, {})
    for rule, dtype in ((0, "fp32"), (1, "fp64"), (4, "fp32")):
        constants = {"RULE": rule, "BEST_IF_EMPTY": True, "KEY_BITS": int(dtype[2:]), "PLACE_BITS": 64}
        warps = SEARCH_WARPS if rule == 0 else OTHER_WARPS
        constants |= {"BLOCK": warps * PER_WARP}
        reward_types = types | {"reward_ptr": f"*{dtype}"}
        constants |= _absent("r_max_ptr") | ({} if rule == 4 else _absent("copies_ptr"))
        yield _case(f"reward_wide/{rule}/{dtype}", _reward_wide_fwd_kernel, reward_types, constants, warps, {})
    for name, absent in (("dense", _absent("offsets_ptr")), ("ragged", {})):
        constants = absent | {"BLOCK_GROUPS": 64, "BLOCK": 16}
        yield _case(f"reward_pack/{name}", _reward_pack_fwd_kernel, types, constants, 4, {})
