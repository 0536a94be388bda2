"""The suite at its smallest shapes: what it writes, what it says of cases that fail, and its arithmetic by hand."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import pnet_jax
from pnet_jax import parallel
from pnet_jax.bench import hlo, inputs, results, scaling, timing
from pnet_jax.bench.cases import CASES, CasePartition, Work
from pnet_jax.bench.measure import against, measure
from pnet_jax.bench.program import main
from pnet_jax.bench.roofline import Roofline
from pnet_jax.cli import main as pnet
from pnet_jax.ops.shapes import COHORTS, SCANS, SHAPES, TINY, Shape
from pnet_jax.space import grid_neighbours

QUICK = ("--shapes", ",".join(TINY), "--quick", "--repeats", "3")
ROOFLINE = Roofline({"float32": 1e11, "float32_fast": 1e11, "bfloat16": 1e11}, 1e10)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


# --- the whole program


def test_the_suite_runs_at_its_smallest_shapes_and_writes_what_it_found(tmp_path, capsys):
    """Cases of both groups of shapes and both implementations; then once more against the baseline that the first run left."""
    ops = ("correlation", "fingerprint", "potts")
    assert pnet(["bench", "--ops", ",".join(ops), *QUICK, "--scaling", "none", "--out", str(tmp_path), "--rebaseline"]) == 0
    told = capsys.readouterr().out
    [file] = [f for f in tmp_path.glob("*.json") if "baseline" not in f.name]
    result = json.loads(file.read_text())
    results.check(result)
    expected = {
        (op, name, shape) for op, c in CASES.items() if op in ops for name in c.implementations for shape in c.shapes if shape in TINY
    }
    assert {(row["op"], row["implementation"], row["shape"]) for row in result["cases"]} == expected
    assert {row["status"] for row in result["cases"]} == {"ok"}
    for row in result["cases"]:
        assert len(row["seconds"]["run"]) == 3
        assert min(row["seconds"]["lower"], row["seconds"]["compile"], row["seconds"]["median"], row["roofline"]["fraction"]) > 0
        assert f"| {row['op']} | {row['implementation']} | {row['shape']} |" in told
        assert row["baseline_ratio"] is None
    assert file.with_suffix(".md").read_text() == told[: told.index("written: ")].removesuffix("\n")
    assert file.with_suffix(".png").stat().st_size > 1000

    arguments = ["--ops", "potts", "--implementations", "chunked", *QUICK, "--scaling", "sizes", "--out", str(tmp_path)]
    assert main(arguments) == 0
    again = json.loads(file.read_text())
    assert len(again["cases"]) == 2
    assert all(row["baseline_ratio"] > 0 for row in again["cases"])
    assert {row["letter"]: row["exponents"]["flop"] for row in again["scaling"]["sizes"]} == {"V": 1.0, "C": 1.0}


def test_the_suite_runs_every_op_and_needs_jax_and_numpy_alone(tmp_path):
    # Not scipy: JAX does not install without it.
    blocked = ("jaxtyping", "nibabel", "nilearn", "sklearn", "pandas", "grain", "orbax", "matplotlib", "jsonargparse", "tqdm")
    code = f"import sys\nfor name in {blocked}:\n    sys.modules[name] = None\nfrom pnet_jax.bench.program import main\n"
    options = [*QUICK, "--shapes", "tiny,tiny-cohort", "--implementations", "chunked", "--scaling", "none", "--out", str(tmp_path)]
    code += f"sys.exit(main({options!r}))"
    folder = Path(pnet_jax.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for op, case in CASES.items():
        assert f"| {op} | chunked | {next(name for name in case.shapes if name in TINY)} |" in done.stdout
    assert [f.suffix for f in tmp_path.iterdir()].count(".png") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "corelation"], "got 'corelation'; did you mean 'correlation'?"),
        (["--shapes", "mni5mm"], "expected one of tiny, "),
        (["--implementations", "fast"], "expected one of chunked, reference, got 'fast'"),
        (["--dtypes", "float16"], "expected one of float32, bfloat16, got 'float16'; did you mean 'bfloat16'?"),
        (["--repeats", "0"], "expected a whole number from 1, got '0'"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_baseline_is_named(tmp_path):
    file = tmp_path / "kernels_cpu.json"
    file.write_text('{"program": 3}')
    with pytest.raises(ValueError, match=r"kernels_cpu\.json: result: expected keys .* got no \['arguments', 'cases'"):
        results.read(file)


# --- cases that fail


def broken(op, error):
    def build(shape, make):
        raise error

    return dataclasses.replace(CASES["potts"], op=op, build=build)


def test_a_case_that_raises_is_a_row_and_stops_no_other(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(CASES, "broken", broken("broken", RuntimeError("no luck\nat all")))
    monkeypatch.setitem(CASES, "absent", broken("absent", NotImplementedError("soft_assign: no pallas on cpu")))
    options = ["--shapes", "tiny", "--quick", "--repeats", "3", "--scaling", "sizes", "--out", str(tmp_path)]
    code = main(["--ops", "broken,absent,potts", "--implementations", "chunked", *options])
    assert code == 1
    told = capsys.readouterr().out
    result = json.loads(next(tmp_path.glob("*.json")).read_text())
    rows = {(row["op"], row["shape"]): row for row in result["cases"]}
    for op, status, reason in (
        ("broken", "failed", "RuntimeError: no luck"),
        ("absent", "unavailable", "NotImplementedError: soft_assign: no pallas on cpu"),
    ):
        assert (rows[op, "tiny"]["status"], rows[op, "tiny"]["reason"]) == (status, reason)
        assert f"not measured: {reason}" in told
    assert rows["potts", "tiny"]["status"] == "ok"
    assert [row["status"] for row in result["scaling"]["sizes"]] == ["failed"] * 4 + ["ok"] * 2


def test_what_would_not_fit_into_memory_is_not_tried(monkeypatch):
    monkeypatch.setattr("pnet_jax.bench.measure.free_memory", lambda: 1000)
    row = measure(CASES["potts"], "chunked", SHAPES["tiny"], "float32", repeats=1)
    assert row["status"] == "unavailable"
    assert row["reason"].startswith("MemoryError: needs 0.0 GB, but 0.0 GB are free")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: row.pop("seconds"), r"result\.cases\[0\]: expected keys .* got no \['seconds'\]"),
        (
            lambda row: row["roofline"].update(bound="luck"),
            r"result\.cases\[0\]\.roofline\.bound: expected one of matmul, copy, got 'luck'",
        ),
        (lambda row: row["flop"].update(formula="1"), r"result\.cases\[0\]\.flop\.formula: expected int or float, got '1'"),
        (lambda row: row.update(status="fine"), r"result\.cases\[0\]\.status: expected one of ok, unavailable, failed, got 'fine'"),
    ],
)
def test_results_of_another_form_are_refused(spoil, message):
    row = against(measure(CASES["potts"], "chunked", SHAPES["tiny"], "float32", repeats=3), ROOFLINE) | {"baseline_ratio": None}
    rates = dataclasses.asdict(ROOFLINE)
    result = {
        "program": "", "date": "", "arguments": {}, "versions": {}, "device": results.describe_device(),
        "roofline": {**rates, "before": rates, "after": rates}, "cases": [copy.deepcopy(row)], "scaling": {"sizes": [], "devices": []},
    }  # fmt: skip
    results.check(result)
    spoil(result["cases"][0])
    with pytest.raises(ValueError, match=message):
        results.check(result)


# --- arithmetic


def test_the_roofline_by_hand():
    """1 GFLOP at 100 GFLOP/s takes 10 ms, 200 MB at 10 GB/s 20 ms: memory bounds it; at 50 MB products do."""
    assert ROOFLINE.seconds(1e9, 2e8) == (0.02, "copy")
    assert ROOFLINE.seconds(1e9, 5e7) == (0.01, "matmul")
    row = {"status": "ok", "dtype": "float32", "flop": {"formula": 1e9}, "bytes": {"formula": 2e8}, "seconds": {"median": 0.08}}
    assert against(row, ROOFLINE)["roofline"] == {"seconds": 0.02, "bound": "copy", "fraction": 0.25}
    assert ROOFLINE.larger(Roofline({"float32": 2e11, "float32_fast": 1.0, "bfloat16": 1.0}, 1.0)) == Roofline(
        {"float32": 2e11, "float32_fast": 1e11, "bfloat16": 1e11}, 1e10
    )


def test_formulas_by_hand():
    """Of 2 subjects, 3 parcels, 5 frames: 2·2·9·5 operations; signals read, matrices written."""
    cohort = Shape("", S=2, K=3, T=5)
    assert (CASES["correlation"].flop(cohort), CASES["correlation"].bytes(cohort, 4)) == (180, 4 * (30 + 18))
    scan = Shape("", V=10, T=3, R=4, D=2, K=5, C=2, N=6)
    assert CASES["fingerprint"].flop(scan) == 2 * 10 * 4 * 3 + 2 * 10 * 4 * 2
    assert CASES["soft_assign"].flop(scan) == 2 * (2 * 10 * 5 * 2)
    assert CASES["potts"].flop(scan) == 6 * 10 * 2
    assert CASES["mixture"].flop(scan) == 13 * 400 + 12 * 120


@pytest.mark.parametrize("op", ["correlation", "fingerprint", "soft_assign"])
def test_formulas_equal_what_is_compiled(op):
    """Matrix products of the compiled text against the formula, at sizes where nothing is padded; means of signals are products too."""
    case = CASES[op]
    for implementation in case.implementations:
        work = case.build(case.base, inputs.Inputs())
        counts = hlo.read(compiled(functools.partial(work.run, implementation), *work.arguments))
        assert_allclose(counts.matmul, case.flop(case.base), rtol=0.02)
        assert counts.unknown_loops == 0


def test_work_in_loops_counts_as_often_as_they_run():
    x, steps = jnp.ones((8, 16)), 7
    one = hlo.read(compiled(lambda x: x @ x.T, x))
    many = hlo.read(compiled(lambda x: jax.lax.map(lambda s: (x * s) @ x.T, jnp.arange(steps, dtype=jnp.float32)), x))
    assert one.matmul == 2 * 8 * 16 * 8
    assert many.matmul == steps * one.matmul
    sines = hlo.read(compiled(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.fori_loop(0, 3, lambda _, z: jnp.sin(z), y), x), x))
    assert sines.arithmetic == 15 * x.size


def test_products_are_counted_as_every_backend_writes_them():
    """A convolution here, which a TPU makes of products, and the text of a call to the vendor's library on a GPU."""
    image, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((5, 3, 2, 2))
    assert hlo.read(compiled(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), image, kernel)).matmul == 2 * (5 * 7 * 7) * (3 * 2 * 2)

    class Text:
        def as_text(self):
            numbers = '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}'
            call = f'custom-call(%x, %y), custom_call_target="__cublas$gemm", backend_config={{"gemm_backend_config":{{{numbers}}}}}'
            lines = [
                "%x = f32[8,16]{1,0} parameter(0)",
                "%y = f32[16,4]{1,0} parameter(1)",
                f"ROOT %c = (f32[8,4]{{1,0}}, s8[64]{{0}}) {call}",
            ]
            return "\n".join(["ENTRY %main (x: f32[8,16], y: f32[16,4]) -> f32[8,4] {", *(f"  {line}" for line in lines), "}"])

    assert hlo.read(Text()).matmul == 2 * 8 * 4 * 16


def test_a_loop_of_unknown_length_is_told():
    counts = hlo.read(compiled(lambda x: jax.lax.while_loop(lambda y: y.sum() < 100, lambda y: y * 2, x), jnp.ones(4)))
    assert counts.unknown_loops == 1


def test_collectives_are_counted_as_written_and_as_executed():
    mesh = parallel.make_mesh()
    spec = PartitionSpec("subject")

    def local(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: y + jax.lax.psum(y, "subject"), x)

    step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    counts = hlo.read(compiled(step, jnp.ones((8, 2))))
    assert (counts.written, counts.collectives) == ({"all-reduce": 1}, {"all-reduce": 5})


def test_work_over_devices_is_shared_and_needs_no_exchange_but_the_sum():
    ops = ("correlation", "soft_assign", "fingerprint")
    rows = {op: scaling.over_devices(CASES[op], "chunked", scaling.device_shape(CASES[op])) for op in ops}
    for row in rows.values():
        assert_allclose(row["share"], [1, 1 / 2, 1 / 4, 1 / 8], rtol=0.02)
    assert rows["correlation"]["collectives"] == [{}] * 4
    assert rows["soft_assign"]["collectives"][1:] == [{"all-reduce": 1}] * 3
    assert rows["fingerprint"]["collectives"] == [{}] * 4


def test_a_gather_that_the_compiler_slips_in_is_seen():
    """A `lax.map` over a sharded axis under `jit` alone."""

    def build(shape, make):
        def run(implementation, y):
            return jax.lax.map(lambda row: row - row.mean(), y, batch_size=16)

        return Work(run, (make.normal(shape.V, shape.T),), CasePartition("location", (PartitionSpec("location"),)))

    row = scaling.over_devices(dataclasses.replace(CASES["fingerprint"], build=build), "chunked", SHAPES["tiny"], (1, 8))
    assert "all-gather" in row["collectives"][1]


def test_the_process_with_fake_devices_answers_what_this_one_would():
    pairs = [("correlation", "chunked"), ("soft_assign", "chunked")]
    row, other = scaling.over_fake_devices(pairs, (1, 2))
    assert row == scaling.over_devices(CASES["correlation"], "chunked", scaling.device_shape(CASES["correlation"]), (1, 2))
    assert (other["op"], other["status"]) == ("soft_assign", "ok")


def test_a_case_that_does_not_say_how_it_is_spread_is_reported():
    def build(shape, make):
        return Work(lambda implementation, y: y, (make.normal(shape.V),))

    row = scaling.over_devices(dataclasses.replace(CASES["potts"], build=build), "chunked", SHAPES["tiny"], (1, 2))
    assert (row["status"], row["reason"]) == ("unavailable", "the case does not define a distribution over devices")


@pytest.mark.parametrize(("power", "expected"), [(0.5, 0.5), (1, 1.0), (2, 2.0), (0, 0.0)])
def test_exponents_of_known_growth(power, expected):
    sizes = [3, 6, 12, 24]
    assert scaling.exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(expected, abs=1e-3)


def test_the_exponent_of_nothing_is_none():
    assert scaling.exponent([1, 2], [0, 0]) is None


@pytest.mark.parametrize(("op", "letter", "flop", "temporary"), [("fingerprint", "V", 1, 0), ("correlation", "S", 1, 0)])
def test_blocks_keep_memory_while_work_grows(op, letter, flop, temporary):
    exponents = scaling.with_size(CASES[op], "chunked", letter, CASES[op].base)["exponents"]
    assert exponents["flop"] == pytest.approx(flop, abs=0.02)
    assert exponents["temporary"] == pytest.approx(temporary, abs=0.05)


def test_timing_repeats_until_the_budget_is_used():
    calls = []
    assert len(timing.time_call(lambda: calls.append(1), 5, 10.0)) == 5
    assert len(timing.time_call(lambda: calls.append(1), 1000, 0.0)) == timing.LEAST_REPEATS
    assert timing.spread([1, 2, 3]) == pytest.approx(0.5)


def test_a_slower_run_has_a_ratio_above_1():
    row = {"op": "a", "implementation": "b", "shape": "c", "dtype": "d", "status": "ok", "seconds": {"median": 3.0}}
    other = {**row, "op": "new"}
    results.compare([row, other], {"cases": [{**row, "seconds": {"median": 2.0}}]})
    assert (row["baseline_ratio"], other["baseline_ratio"]) == (1.5, None)


# --- inputs


@pytest.mark.parametrize("name", SCANS)
def test_scan_shapes_are_boxes_or_sheets(name):
    at = inputs.positions(SHAPES[name])
    assert at.shape == (SHAPES[name].V, 3)
    assert len(np.unique(at @ [10**8, 10**4, 1])) == len(at)
    assert max(at.max(0) + 1) <= 4 * sorted(at.max(0) + 1)[1]


def test_neighbours_are_those_of_a_grid_and_symmetric_on_a_sheet():
    box, sheet = SHAPES["tiny"], SHAPES["tiny-mesh"]
    assert_array_equal(inputs.neighbours(box), grid_neighbours(inputs.positions(box).astype(np.int64)))
    table = inputs.neighbours(sheet)
    pairs = {(v, u) for v, row in enumerate(table.tolist()) for u in row if u >= 0}
    assert pairs == {(u, v) for v, u in pairs}
    assert max(len({u for u in row if u >= 0}) for row in table.tolist()) == 6


def test_candidates_are_the_nearest_parcels_and_none_comes_twice():
    shape = SHAPES["tiny"]
    found = inputs.candidates(shape)
    assert (found.shape, found.min(), found.max()) == ((512, 6), -1, 11)
    assert all(len(set(row)) == len(row) for row in ([k for k in row if k >= 0] for row in found.tolist()))
    assert_allclose(inputs.Inputs().shares(found).sum(1), 1, atol=1e-6)


def test_inputs_of_one_seed_are_the_same_and_have_the_type_asked_for():
    assert_array_equal(inputs.Inputs().normal(3, 2), inputs.Inputs().normal(3, 2))
    assert inputs.Inputs("bfloat16").unit(3, 2).dtype == jnp.bfloat16
    r = np.corrcoef(inputs.Inputs().signals(20, 2000))
    assert 0.2 < np.median(r) < 0.4


def test_every_shape_has_the_letters_its_group_needs():
    assert all(getattr(SHAPES[name], letter) > 0 for name in SCANS for letter in "VTRDKCN")
    assert all(getattr(SHAPES[name], letter) > 0 for name in COHORTS for letter in "STKP")
    assert all(SHAPES[name].V % 512 == 0 for name in SCANS)
