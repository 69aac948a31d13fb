"""Collectives and bytes of compiled programs, against what one counts by hand."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from plan.gathers import LENGTH, WIDTH, compiled
from running import on_virtual_devices

from prl_jax.plan.hlo import Collective, Cost, analyse
from prl_jax.plan.hlo_text import Shape, parse
from prl_jax.plan.plan import stack_gathers
from prl_jax.plan.quiet import said_to_stderr
from prl_jax.plan.topology import find_topology
from prl_jax.sharding import batch_sharding, make_mesh

DEVICES = 4
MATRIX = WIDTH * WIDTH  # elements
NAMES = ("gathers", "stack", "sums")

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[10,8]{1,0})->f32[8]{0}}, num_partitions=8

%slice_and_add (p0: f32[10,8], p1: s32[], p2: f32[8]) -> f32[8] {
  %p0 = f32[10,8]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
  %flat = f32[8]{0} bitcast(%row)
  %p2 = f32[8]{0:T(128)} parameter(2)
  ROOT %sum = f32[8]{0:T(128)} add(%flat, %p2)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8], f32[10,8])) -> (s32[], f32[8], f32[10,8]) {
  %state = (s32[]{:T(128)}, f32[8]{0}, f32[10,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %w = f32[10,8]{1,0} get-tuple-element(%state), index=2
  %fused = f32[8]{0} fusion(%w, %i, %x), kind=kLoop, calls=%slice_and_add
  %reduced = f32[8]{0} all-reduce(%fused), channel_id=1, replica_groups=GROUPS, to_apply=%add
  %one = s32[] constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, f32[8]{0}, /*index=2*/f32[10,8]{1,0}) tuple(%next, %reduced, %w)
}

%condition (state.1: (s32[], f32[8], f32[10,8])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8]{0}, f32[10,8]{1,0}) parameter(0)
  %limit = s32[] constant(10)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (weights: f32[10,8]) -> f32[8] {
  %weights = f32[10,8]{1,0:T(8,128)} parameter(0)
  %first = s32[] constant(3)
  %start = f32[8]{0} broadcast(%first), dimensions={}
  %init = (s32[], f32[8]{0}, f32[10,8]{1,0}) tuple(%first, %start, %weights)
  %loop = (s32[], f32[8]{0}, f32[10,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def of_text(groups: str = "{{0,1},{2,3},{4,5},{6,7}}", text: str = TEXT) -> Cost:
    return analyse(text.replace("GROUPS", groups), 8)


def test_a_loop_counts_as_often_as_it_runs():
    cost = of_text()
    (one,) = cost.collectives
    assert (one.kind, one.times, one.sent, cost.open_loops) == ("all-reduce", 7, 2 * 32 * (1 / 2), 0)
    # From 3 to 10. The fusion reads a row of the weights (not all), its other operand and writes 8 numbers; the
    # all-reduce reads and writes 8; before the loop a number is read and 8 are written. The counter itself is in
    # another memory, the constants beside it are not, nor is what the condition compares.
    assert cost.moved == 7 * (3 * 32 + 2 * 32) + (4 + 32) + 7 * (4 + 9)
    assert cost.by_kind() == {"all-reduce": (7, 7 * 32.0)}


def test_the_attributes_of_a_kernel_may_go_over_several_lines():
    """As those of splash attention: the last line begins with the brace that ends a computation."""
    line = '  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={metadata={\n'
    line += '"block":"512"\n}}, metadata={op_name="kernel"}\n'
    before = next(line for line in TEXT.splitlines(keepends=True) if "%next = " in line)
    (body,) = [c for c in parse(TEXT.replace(before, line + before)).values() if "next" in c.instructions]
    (whole,) = [c for c in parse(TEXT).values() if "next" in c.instructions]
    assert body.root == whole.root
    assert set(body.instructions) == {*whole.instructions, "k"}
    assert 'op_name="kernel"' in body.instructions["k"].text


UNROLLED = TEXT.replace("%one = s32[] constant(1)", "%one = s32[] constant(STEP)")
FUSED = UNROLLED.replace(
    "%next = s32[]{:T(128)S(6)} add(%i, %one)",
    "%both = (s32[], f32[8]{0}) fusion(%x, %i, %one), kind=kLoop, calls=%count\n"
    "  %next = s32[]{:T(128)S(6)} get-tuple-element(%both), index=0",
).replace(
    "%add (a:",
    """%count (f0: f32[8], f1: s32[], f2: s32[]) -> (s32[], f32[8]) {
  %f0 = f32[8]{0} parameter(0)
  %f1 = s32[] parameter(1)
  %f2 = s32[] parameter(2)
  %f3 = s32[] add(%f1, %f2)
  ROOT %f4 = (s32[], f32[8]{0}) tuple(%f3, %f0)
}

%add (a:""",
)


@pytest.mark.parametrize("text", [UNROLLED, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize(("step", "times"), [("1", 7), ("2", 4), ("3", 3), ("7", 1), ("8", 1)])
def test_a_loop_may_count_in_steps(text, step, times):
    """Compilers unroll loops: a run of the body is then several of the program's."""
    cost = of_text(text=text.replace("STEP", step))
    assert (cost.collectives[0].times, cost.open_loops) == (times, 0)


def test_what_goes_into_a_fusion_beside_the_counter_is_not_looked_at():
    """It may depend on everything that came before: here on 60 fusions, each on its predecessor twice."""
    chain = ["%d0 = f32[8]{0} fusion(%x, %x), kind=kLoop, calls=%twice"]
    chain += [f"  %d{i} = f32[8]{{0}} fusion(%d{i - 1}, %d{i - 1}), kind=kLoop, calls=%twice" for i in range(1, 60)]
    text = FUSED.replace("%both =", "\n".join(chain) + "\n  %both =").replace("fusion(%x, %i", "fusion(%d59, %i")
    twice = "%twice (t0: f32[8], t1: f32[8]) -> f32[8] {\n  %t0 = f32[8]{0} parameter(0)\n"
    twice += "  %t1 = f32[8]{0} parameter(1)\n  ROOT %t2 = f32[8]{0} add(%t0, %t1)\n}\n\n"
    text = text.replace("%count (f0", f"{twice}%count (f0")
    assert of_text(text=text.replace("STEP", "2")).collectives[0].times == 4


@pytest.mark.parametrize("step", ["0", "-1"])
def test_a_loop_that_does_not_count_upwards_is_of_unknown_length(step):
    cost = of_text(text=UNROLLED.replace("STEP", step))
    assert (cost.collectives[0].times, cost.open_loops) == (1, 1)


def test_the_compiler_may_state_the_trip_count():
    stated = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"42"}}')
    assert of_text(text=stated).collectives[0].times == 42


def test_a_loop_whose_end_nobody_knows_counts_once_and_is_reported():
    cost = of_text(text=TEXT.replace("direction=LT", "direction=EQ"))
    assert (cost.collectives[0].times, cost.open_loops) == (1, 1)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0','axis_1'}", 8),
        ("{}", 8),
    ],
)
def test_groups_of_devices(groups, size):
    assert of_text(groups).collectives[0].sent == pytest.approx(2 * 32 * (size - 1) / size)


def test_a_group_of_one_sends_nothing():
    assert of_text("{{0},{1},{2},{3},{4},{5},{6},{7}}").collectives == ()


SPREAD = """
%start (p: f32[2,8]) -> (f32[2,8], f32[8,8]) {
  %p = f32[2,8]{1,0} parameter(0)
  %g0 = f32[8,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %c0 = (f32[2,8]{1,0}, f32[8,8]{1,0}) custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}

%step (q: f32[2,8]) -> f32[8,8] {
  %q = f32[2,8]{1,0} parameter(0)
  ROOT %g1 = f32[8,8]{1,0} all-gather(%q), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (state: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %state = (s32[], f32[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %b = f32[2,8]{1,0} get-tuple-element(%state), index=1
  %m = f32[8,8]{1,0} fusion(%b), kind=kCustom, calls=%step
  ROOT %out = (s32[], f32[2,8]{1,0}) tuple(%i, %b)
}

%condition (state.1: (s32[], f32[2,8])) -> pred[] {
  %state.1 = (s32[], f32[2,8]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (x: f32[2,8]) -> f32[8,8] {
  %x = f32[2,8]{1,0} parameter(0)
  %s = (f32[2,8]{1,0}, f32[8,8]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %zero = s32[] constant(0)
  %init = (s32[], f32[2,8]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[2,8]) while(%init), body=%body, condition=%condition, x={"known_trip_count":{"n":"3"}}
  %last = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%step
  ROOT %again = f32[8,8]{1,0} all-gather(%x), channel_id=6, replica_groups=[1,4]<=[4], dimensions={0}
}
"""


def test_a_collective_that_is_spread_over_fusions_is_one():
    found = analyse(SPREAD, 4).collectives
    assert [(one.kind, one.times, one.sent, one.full_shapes[0].dims) for one in found] == [
        ("all-gather", 1, 3 * 64, (8, 8)),
        ("all-gather", 1, 3 * 64, (8, 8)),
    ]


@pytest.mark.parametrize(
    ("topology", "parts", "expected"),
    [
        # In one fusion the sum over one axis of the mesh and a slice of it: then the slices are summed over the other.
        ("v5e:2x2", 2, {"reduce-scatter": (1, 1 / 2), "all-reduce": (1, 2 / 2 / 2)}),
        # The same, in slices that are a little larger, of which neighbours then exchange the ends.
        ("v5e:4x4", 4, {"reduce-scatter": (1, 2112 / 2048 * 3 / 4), "all-reduce": (1, 2 / 4 * 3 / 4)}),
        # Over all devices the compiler sums whole arrays, whatever it is asked for.
        ("v5e:4x4", 16, {"all-reduce": (1, 2 * 15 / 16)}),
    ],
)
def test_how_tpus_scatter_sums(topology, parts, expected):
    devices, size = find_topology(topology).devices, 2048
    mesh = make_mesh(data=-1, fsdp=parts, devices=devices)
    rows = jax.ShapeDtypeStruct((4096, size), jnp.bfloat16, sharding=batch_sharding(mesh))
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))
    with said_to_stderr():
        text = jax.jit(lambda x, g: x.T @ g, out_shardings=cut).lower(rows, rows).compile().as_text()
    found = {kind: (n, sent / (2 * size * size)) for kind, (n, sent) in analyse(text, len(devices)).by_kind().items()}
    found.pop("collective-permute", None)
    assert found == {kind: (n, pytest.approx(sent)) for kind, (n, sent) in expected.items()}


def test_gathers_of_a_whole_stack_are_found():
    devices = find_topology("v5e:2x2").devices
    mesh = Mesh(np.array(devices), ("x",))
    cut = lambda *shape: jax.ShapeDtypeStruct(  # noqa: E731
        shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "x"))
    )
    with said_to_stderr():
        costs = {name: analyse(compiled(devices, name).as_text(), DEVICES) for name in ("gathers", "stack")}
    assert stack_gathers(costs["gathers"], [cut(LENGTH, WIDTH, WIDTH)]) == ()
    assert len(stack_gathers(costs["stack"], {"policy": cut(LENGTH, WIDTH, WIDTH)})) == 1
    assert stack_gathers(costs["stack"], [cut(LENGTH, WIDTH, 2 * WIDTH)]) == ()
    # As much as a device has anyway, put together from something else.
    small = Collective("all-gather", 1, (Shape("f32", (LENGTH, WIDTH // DEVICES, WIDTH), True),), 0.0, "activations")
    assert stack_gathers(Cost((small,), 0.0, 0), [cut(LENGTH, WIDTH, WIDTH)]) == ()


def expect(costs: dict[str, Cost], size: int) -> None:
    """What the programs of `gathers.py` have to hold; the compiler may cast what it gathers to `size` bytes."""
    gathered = MATRIX * size * (DEVICES - 1) / DEVICES
    assert costs["gathers"].by_kind() == {"all-gather": (LENGTH, LENGTH * gathered)}
    assert costs["stack"].by_kind() == {"all-gather": (1, LENGTH * gathered)}
    sums = costs["sums"].by_kind()
    assert sums == {"all-gather": (1, gathered), "all-reduce": (1, 2 * MATRIX * 4 * (DEVICES - 1) / DEVICES)}
    assert costs["stack"].collectives[0].full_shapes[0].elements == LENGTH * MATRIX
    assert all(cost.open_loops == 0 for cost in costs.values())
    # At least: its share of the weights and rows is read, and rows are written.
    assert all(cost.moved > 4 * MATRIX / DEVICES for cost in costs.values())


def test_programs_for_cpus():
    texts = json.loads(on_virtual_devices(Path(__file__).with_name("gathers.py"), devices=DEVICES))
    expect({name: analyse(texts[name], DEVICES) for name in NAMES}, size=4)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_programs_for_tpus(topology):
    devices = find_topology(topology).devices
    with said_to_stderr():
        expect({name: analyse(compiled(devices, name).as_text(), DEVICES) for name in NAMES}, size=2)


def test_what_is_read_is_written():
    found = parse(TEXT)
    assert list(found) == ["slice_and_add", "add", "body", "condition", "main"]
    loop = found["main"].instructions["loop"]
    assert (loop.opcode, loop.operands, len(loop.shapes)) == ("while", ("init",), 3)
    assert dict(loop.called) == {"condition": "condition", "body": "body"}
    assert found["body"].root.shapes[2].bytes == 320
    assert not found["body"].instructions["i"].shapes[0].in_main_memory


ASYNC = """
ENTRY %main (x: f32[4,256], y: f32[2,8]) -> f32[1,256] {
  %x = f32[4,256]{1,0:T(8,128)} parameter(0)
  %y = f32[2,8]{1,0} parameter(1)
  %s = ((f32[4,256]{1,0:T(8,128)}), f32[1,256]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1], [0:256]}
  %row = f32[1,256]{1,0:T(8,128)S(1)} slice-done(%s)
  %c = (f32[1,256]{1,0:T(8,128)}, f32[1,256]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%row)
  %out = f32[1,256]{1,0:T(8,128)} copy-done(%c)
  %p = (f32[2,8], f32[2,8], u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), source_target_pairs={{0,1},{1,0}}
  %q = f32[2,8]{1,0} collective-permute-done(%p)
  ROOT %r = f32[1,256]{1,0:T(8,128)} bitcast(%out)
}
"""


def test_what_starts_and_ends_apart_counts_once_in_main_memory_alone():
    cost = analyse(ASYNC, 2)
    # A row is read and the copy written: in between it lies in another memory. The permutation reads and writes.
    assert cost.moved == 1024 + 1024 + 2 * 64
    assert [(one.kind, one.sent, one.full_shapes[0].dims) for one in cost.collectives] == [
        ("collective-permute", 64.0, (2, 8))
    ]
