"""Programs whose schedule is known, and what the compiler makes of real ones."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusejax.config import MeshConfig
from fusejax.distributed.collectives import scatter_sum
from fusejax.distributed.compiled import uncached
from fusejax.distributed.mesh import make_mesh
from fusejax.distributed.tuning import BY_KIND, Tuning, tuning
from fusejax.planning.links import HOP_SECONDS, Links
from fusejax.planning.schedule import read
from fusejax.planning.topology import parse_topology
from tests.planning.test_links import links

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")

PARTS = "channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, use_global_device_ids=true"
SENT = 7 * 2**20 * 2
"""Bytes of a gathered bf16[8,1048576] that a chip sends."""
SECONDS = SENT / (3 * 90e9) + 3 * HOP_SECONDS
"""How long the links of v5p-16 need for it: 57 microseconds."""


def compute(name: str, microseconds: float, *operands: str) -> str:
    """An operation on the core; a v5p runs at 1.75 GHz."""
    cycles = round(microseconds * 1750)
    arguments = ", ".join(f"%{operand}" for operand in operands)
    return (
        f'%{name} = f32[8] fusion({arguments}), kind=kLoop, calls=%f, backend_config={{"estimated_cycles":"{cycles}"}}'
    )


def text(*entry: str, others: str = "") -> str:
    """A program for v5p-16."""
    lines = "\n".join(f"  {line}" for line in ("%p = bf16[1,1048576] parameter(0)", *entry))
    fused = "%f (a: f32[8]) -> f32[8] {\n  ROOT %a = f32[8] parameter(0)\n}"
    main = f"ENTRY %main (p: bf16[1,1048576]) -> f32[8] {{\n{lines}\n}}"
    return f"HloModule test, is_scheduled=true\n\n{fused}\n{others}\n{main}\n"


def schedule(*entry: str, others: str = "", **options):
    return read(text(*entry, others=others), links("v5p-16"), **options)


GATHER = f"%gather = bf16[8,1048576]{{1,0:T(8,128)(2,1)}} all-gather(%p), {PARTS}"
OFFLOADED = f"""%sparse (q: bf16[1,1048576]) -> bf16[8,1048576] {{
  %q = bf16[1,1048576] parameter(0)
  ROOT %inner = bf16[8,1048576] all-gather(%q), {PARTS}
}}, execution_thread="sparsecore"
"""
START = (
    "%start = ((bf16[1,1048576], token[]), bf16[8,1048576]) call-start(%p, %t), "
    'async_execution_thread="sparsecore", to_apply=%sparse'
)
DONE = "%done = bf16[8,1048576] call-done(%start)"


def test_a_synchronous_gather_is_exposed():
    found = schedule(compute("before", 100), GATHER, compute("after", 200))
    [(kind, traffic)] = found.traffic.items()
    assert kind == "all-gather"
    assert traffic.bytes == SENT
    assert traffic.seconds == pytest.approx(SECONDS)
    assert traffic.exposed_seconds == pytest.approx(SECONDS)
    assert found.compute_seconds == pytest.approx(300e-6)
    assert found.seconds == pytest.approx(300e-6 + SECONDS)


@pytest.mark.parametrize("between", [0, 10, 50, 1000])
def test_an_asynchronous_gather_is_exposed_by_what_is_not_computed_meanwhile(between):
    found = schedule(compute("before", 100), START, compute("product", between), DONE, others=OFFLOADED)
    gather = found.traffic["all-gather"]
    assert gather.bytes == SENT
    assert gather.seconds == pytest.approx(SECONDS)
    assert gather.exposed_seconds == pytest.approx(max(0, SECONDS - between * 1e-6))


def test_what_is_computed_before_or_after_hides_nothing():
    found = schedule(compute("before", 1000), START, DONE, compute("after", 1000), others=OFFLOADED)
    assert found.communication.exposed_seconds == pytest.approx(SECONDS)


def test_the_links_serve_one_after_the_other():
    two = (START, START.replace("%start", "%start.2", 1))
    ends = (DONE, DONE.replace("done", "done.2", 1).replace("%start", "%start.2"))
    found = schedule(*two, compute("product", 80), *ends, others=OFFLOADED)
    assert found.communication.exposed_seconds == pytest.approx(2 * SECONDS - 80e-6)
    # A synchronous one waits for what is under way.
    found = schedule(START, GATHER, compute("product", 80), DONE, others=OFFLOADED)
    assert found.communication.exposed_seconds == pytest.approx(2 * SECONDS)


def test_a_gather_that_products_carry_along_counts_once():
    chain = 'frontend_attributes={chain_id="3"}'
    inner = "".join(
        f"%{name} (a: bf16[1,1048576]) -> bf16[8,1048576] {{\n  %a = bf16[1,1048576] parameter(0)\n"
        f"  ROOT %g = bf16[8,1048576] all-gather(%a), {PARTS}, {chain}\n}}\n"
        for name in ("first", "async_collective_fusion.1", "last")
    )
    carried = 'kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"52500"}'  # 30 us
    found = schedule(
        "%async-collective-start = (bf16[1,1048576], bf16[8,1048576]) fusion(%p), kind=kCustom, calls=%first",
        "%part = u32[] get-tuple-element(%async-collective-start), index=1",
        f"%product = (f32[8], bf16[8,1048576]) fusion(%p, %part), {carried}",
        "%async-collective-done = bf16[8,1048576] fusion(%part), kind=kCustom, calls=%last",
        others=inner,
    )
    assert found.communication.bytes == SENT
    assert found.communication.exposed_seconds == pytest.approx(SECONDS - 30e-6)


def test_a_ring():
    """Each step's permutation runs beside the product of the step before."""
    pairs = "source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}"
    shape = "bf16[1,1048576]"
    lines, source = [], "p"
    for step in range(3):
        lines += [
            f"%start.{step} = ({shape}, {shape}, u32[], u32[]) collective-permute-start(%{source}), {pairs}",
            compute(f"product.{step}", 10),
            f"%done.{step} = {shape} collective-permute-done(%start.{step})",
        ]
        source = f"done.{step}"
    once = 2 * 2**20 / 90e9 + HOP_SECONDS
    ring = schedule(*lines).traffic["collective-permute"]
    assert ring.bytes == 3 * 2 * 2**20
    assert ring.seconds == pytest.approx(3 * once)
    assert ring.exposed_seconds == pytest.approx(3 * (once - 10e-6))


def test_an_all_reduce_of_which_each_chip_keeps_a_part_is_a_reduce_scatter():
    inner = """%all-reduce-scatter.1 (a: bf16[8,1048576]) -> bf16[1,1048576] {
  %a = bf16[8,1048576] parameter(0)
  %sum = bf16[8,1048576] all-reduce(%a), replica_groups=[1,8]<=[8], to_apply=%f
  ROOT %part = bf16[1,1048576] slice(%sum), slice={[0:1], [0:1048576]}
}
"""
    call = "kind=kCustom, calls=%all-reduce-scatter.1"
    found = schedule(f"%scatter = bf16[1,1048576] fusion(%p), {call}", others=inner)
    assert found.traffic["reduce-scatter"].bytes == SENT
    assert found.traffic["reduce-scatter"].exposed_seconds == pytest.approx(SECONDS)


def loop(attributes: str = "", bound: str = "%limit = s32[] constant(32)", step: int = 1) -> tuple[str, str]:
    """A loop that gathers in every turn, and the computations that it names."""
    inner = f"""%body (s: (s32[], bf16[1,1048576])) -> (s32[], bf16[1,1048576]) {{
  %s = (s32[], bf16[1,1048576]) parameter(0)
  %p = bf16[1,1048576] get-tuple-element(%s), index=1
  {GATHER}
  {compute("product", 100)}
  %turn = s32[] get-tuple-element(%s), index=0
  %step = s32[] constant({step})
  %sum = s32[] add(%turn, %step)
  %next = s32[] copy(%sum)
  ROOT %carried = (s32[], bf16[1,1048576]) tuple(%next, %p)
}}
%condition (s: (s32[], bf16[1,1048576])) -> pred[] {{
  %s = (s32[], bf16[1,1048576]) parameter(0)
  {bound}
  %turn = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%turn, %limit), direction=LT
}}
"""
    return f"%loop = (s32[], bf16[1,1048576]) while(%p), condition=%condition, body=%body{attributes}", inner


@pytest.mark.parametrize(
    ("attributes", "bound", "step", "options", "turns"),
    [
        ("", "%limit = s32[] constant(32)", 1, {}, 32),
        ("", "%limit = s32[] constant(32)", 3, {"turns": 5}, 11),
        (', backend_config={"known_trip_count":{"n":"7"}}', "%limit = s32[] constant(32)", 1, {}, 7),
        ("", "%limit = s32[] get-tuple-element(%s), index=0", 1, {"turns": 5}, 5),
    ],
)
def test_loops(attributes, bound, step, options, turns):
    line, inner = loop(attributes, bound, step)
    found = schedule(line, others=inner, **options)
    assert found.compute_seconds == pytest.approx(turns * 100e-6)
    assert found.communication.bytes == turns * SENT
    assert found.communication.exposed_seconds == pytest.approx(turns * SECONDS)


def test_a_loop_hides_what_runs_beside_it_but_shares_the_links():
    line, inner = loop()
    found = schedule(START, line, DONE, others=OFFLOADED + inner)
    assert found.communication.exposed_seconds == pytest.approx(32 * SECONDS)


def test_a_loop_that_counts_in_another_way_is_not_guessed():
    line, inner = loop()
    with pytest.raises(ValueError, match="loop counts in an unknown way"):
        schedule(line, others=inner.replace("add(", "multiply("), turns=5)


def test_a_loop_whose_turns_depend_on_data_is_not_guessed():
    line, inner = loop(bound="%limit = s32[] get-tuple-element(%s), index=0")
    with pytest.raises(ValueError, match="loop has a number of turns that depends on data"):
        schedule(line, others=inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.replace("is_scheduled=true", "x=1"), "not scheduled"),
        (lambda found: found.replace("HloModule", "module"), "not a compiled program's text"),
        (lambda found: found.replace(DONE, ""), "collectives of main that never end: start"),
        (
            lambda found: found.replace("calls=%f", "calls=%sparse"),
            "before has a collective, inner, in an unknown form",
        ),
    ],
)
def test_what_is_not_understood_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read(change(text(compute("before", 1), START, DONE, others=OFFLOADED)), links("v5p-16"))


def test_an_update_takes_the_time_of_what_it_writes():
    given = "%new = f32[1,1048576] parameter(1)", "%stack = f32[32,1048576] parameter(2)"
    found = schedule(*given, "%updated = f32[32,1048576] dynamic-update-slice(%stack, %new, %i, %j)")
    assert found.compute_seconds == pytest.approx(2 * 4 * 2**20 / 2765e9)


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),
        ("mesh['data'=2,'fsdp'=4] {'data'}", 2),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
        ("{}", 8),
    ],
)
def test_groups(groups, members):
    reduced = f"%sum = f32[1048576] all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%f"
    assert schedule(reduced).communication.bytes == pytest.approx(2 * 2 * 2**20 * (1 - 1 / members))


def test_groups_in_an_unknown_form_are_refused():
    with pytest.raises(ValueError, match="sum has groups of devices in an unknown form"):
        schedule("%sum = f32[1048576] all-reduce(%p), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%f")


def test_products_are_counted_where_they_have_factors():
    """Also where a convolution's window has padding everywhere but in one place: so a product leaves heads apart."""
    plain = "%y = f32[512,256] convolution(%a, %b), dim_labels=bf_io->bf"
    heads = (
        "%z = bf16[4,2048,32,128] convolution(%c, %d), window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, "
        "dim_labels=0bf1_1oi0->0b1f"
    )
    found = schedule(
        *("%a = f32[512,128] parameter(1)", "%b = f32[128,256] parameter(2)", plain),
        *("%c = bf16[4,2048,4096,1] parameter(3)", "%d = bf16[32,128,4096,1] parameter(4)", heads),
    )
    assert found.flops == 2 * 512 * 128 * 256 + 2 * 4 * 2048 * 4096 * 32 * 128


@needs_libtpu
@pytest.mark.parametrize(("topology", "kind"), [("v5p-16", "reduce-scatter"), ("v5e-16", "all-to-all")])
def test_real_programs(topology, kind):
    """A loop that gathers a layer and scatters its gradient, as the compiler has it by default and as we have it."""
    slices = parse_topology(topology)
    mesh = make_mesh(MeshConfig(), slices.devices())
    tuned = tuning(mesh)
    width, turns = 2048, 4

    def local(exchanges, weights, gradients, x):
        def body(carry, index):
            x, gradients = carry
            part = jax.lax.dynamic_index_in_dim(weights, index, keepdims=False)
            whole = jax.lax.all_gather(part, "fsdp", axis=0, tiled=True)
            y = jax.nn.relu(x @ whole.T)
            found = scatter_sum(y.T @ x, "fsdp", dimension=0, exchanges=exchanges)
            old = jax.lax.dynamic_index_in_dim(gradients, index, keepdims=False)
            gradients = jax.lax.dynamic_update_index_in_dim(gradients, old + found.astype(jnp.float32), index, 0)
            return (x + y @ whole, gradients), None

        return jax.lax.scan(body, (x, gradients), jnp.arange(turns))[0]

    stacks, rows = PartitionSpec(None, "fsdp"), PartitionSpec("fsdp")

    def given(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    found = {}
    for exchanges, options in ((False, None), (tuned.exchanges, tuned.compiler_options)):
        mapped = jax.shard_map(
            functools.partial(local, exchanges),
            mesh=mesh,
            in_specs=(stacks, stacks, rows),
            out_specs=(rows, stacks),
            check_vma=False,
        )
        program = jax.jit(mapped, donate_argnums=1, compiler_options=options)
        with uncached():
            compiled = program.lower(
                given((turns, width, width), jnp.bfloat16, stacks),
                given((turns, width, width), jnp.float32, stacks),
                given((4096 * mesh.size, width), jnp.bfloat16, rows),
            ).compile()
        found[options is None] = read(compiled.as_text(), Links.of(slices, list(mesh.devices.flat)))
    default, ours = found[True], found[False]
    once = turns * width * width * 2 * (1 - 1 / mesh.size)
    flops = turns * 3 * 2 * 4096 * width * width
    assert default.flops == ours.flops == flops
    assert default.traffic["all-gather"].bytes == ours.traffic["all-gather"].bytes == once
    assert default.traffic["all-reduce"].bytes == 2 * once
    assert default.traffic["all-reduce"].exposed_seconds == pytest.approx(default.traffic["all-reduce"].seconds)
    assert ours.traffic[kind].bytes == once
    assert "all-reduce" not in ours.traffic
    assert ours.traffic[kind].exposed_seconds < 0.6 * ours.traffic[kind].seconds
    assert ours.communication.exposed_seconds < 0.4 * default.communication.exposed_seconds


@needs_libtpu
def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch, capsys):
    mesh = make_mesh(MeshConfig(), parse_topology("v5p-8").devices())
    known = tuning(mesh)
    assert known.compiler_options == dict.fromkeys(known.collectives, True) | {
        "xla_tpu_scoped_vmem_limit_kib": known.vmem_kib
    }
    odd = Tuning((*known.collectives[:1], "xla_tpu_no_such_option"))
    monkeypatch.setitem(BY_KIND, "TPU v5", odd)
    assert tuning(mesh).compiler_options == {known.collectives[0]: True}
    assert re.fullmatch(r"note: .* does not know xla_tpu_no_such_option; .*\n", capsys.readouterr().err)


@needs_libtpu
def test_one_device_has_large_tiles_and_nothing_to_sum():
    mesh = make_mesh(MeshConfig(), parse_topology("v5e-1").devices())
    tuned = tuning(mesh)
    assert (tuned.exchanges, tuned.compiler_options) == (False, {"xla_tpu_scoped_vmem_limit_kib": 65536})


def test_on_other_devices_nothing_changes():
    mesh = make_mesh(MeshConfig())
    assert (tuning(mesh).compiler_options, tuning(mesh).exchanges) == (None, False)
