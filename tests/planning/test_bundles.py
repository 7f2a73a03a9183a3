"""Bundles are counted from schedules in the format of libtpu, without it."""

from __future__ import annotations

import pytest
from hlo_program import PROGRAM

from drsformer_jax.planning import bundles, hlo_cost

SCHEDULE = """
= control target key start
LB: loop body
= control target key end

     0   :  { %s1_s0 = smov 0 } /* Start region 0 */
   0x1 LB: > { %s2_s1 = sphi %s1_s0, %s9_s9  ;;  %s3_s2 = sld [smem:[#allocation1]] }
   0x2   : > { %v4_v0 = vld [vmem:[%s3_s2] sm:$0xff]  ;;  %s5_s3 = sadd.s32 7, %s3_s2 }
   0x3 LB: >> { %s6_s4 = sphi %s1_s0, %s7_s5 }
   0x4   : >> { %7 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s3_s2, /*
window_bounds: (1, 1, 2) */ }
   0x5   : >> { %s7_s5 = sadd.s32 4, %s6_s4 }
   0x6   : >> { %p8_p0 = scmp.ge.s32.totalorder %s7_s5, 10 /* loop exit test */ }
   0x7   :  { %9 = sbr.rel (!%p8_p0) target = $region2 }
   0x8   : >> { %s10_s6 = smov 1 }
   0x9   : > { %s9_s9 = sadd.s32 1, %s2_s1 }
   0xa   : > { %p10_p1 = scmp.ge.s32.totalorder %s9_s9, 5 /* loop exit test */ }
   0xb   :  { %11 = sbr.rel (!%p10_p1) target = $region1 }
   0xc   :  { %12 = vsyncpa [#allocation1], 1 }
"""
"""A loop of 5 trips, and in it one of 3 whose counter takes steps of 4; a branch's delay slot."""
OUTSIDE, OUTER, INNER = 3, 4, 6


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "17-y-02-final_bundles.txt").write_text(SCHEDULE)
    (tmp_path / "17-y-01-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:\n")
    (tmp_path / "17-TLP-00-deduplication-map.txt").write_text(
        "key:y\nordinal:1\nequivalent_hlos[size=2]:\n  y\n  weights\n"
    )
    return tmp_path


def test_loops_of_a_schedule_are_multiplied_out(folder):
    expected = bundles.Schedule(OUTSIDE + 5 * OUTER + 5 * 3 * INNER)
    assert bundles.Schedules(folder).of("y") == expected


def test_loops_one_after_another_are_counted_apart():
    def loop(trips):
        return (
            "  0x1 LB: > { %s2 = sphi %s1, %next ;;  %next = sadd.s32 1, %s2 }\n"
            f"  0x2   : > {{ %p1 = scmp.ge.s32.totalorder %next, {trips} /* loop exit test */ }}\n"
        ).replace("next", f"next{trips}")

    assert bundles.read(loop(4) + loop(7)).bundles == 2 * 4 + 2 * 7


def test_trips_that_fill_and_drain_the_pipeline_of_a_kernel_are_left_out():
    expected = bundles.Schedule(OUTSIDE + 3 * OUTER + 3 * 3 * INNER)
    text = SCHEDULE.replace("%s9_s9  ;;", "%s9_s9 /* iteration index, stage = 0 */  ;;")
    assert bundles.read(text) == expected
    spilled = text.replace("totalorder %s9_s9", "totalorder %s99_s1")
    assert bundles.read(spilled) == expected


def test_bundles_behind_a_branch_in_a_loop_belong_to_the_loop():
    branch = "   0x7   :  { sbr.rel target = $region9 }\n" + "   0x8   :  {}\n" * 4
    text = SCHEDULE.replace("   0x3 LB: >>", branch + "   0x2   : > {}\n   0x3 LB: >>")
    assert bundles.read(text).bundles == OUTSIDE + 5 * (OUTER + 6) + 5 * 3 * INNER


def test_empty_bundles_in_front_of_a_loop_do_not_end_the_one_around_it():
    text = SCHEDULE.replace("   0x3 LB: >>", "   0x2   :  {}\n" * 3 + "   0x3 LB: >>")
    assert bundles.read(text).bundles == OUTSIDE + 5 * (OUTER + 3) + 5 * 3 * INNER


def test_empty_bundles_behind_a_loop_are_where_they_say():
    text = SCHEDULE.replace("   0x9   : >", "   0x8   : > {}\n" * 3 + "   0x9   : >")
    assert bundles.read(text).bundles == OUTSIDE + 5 * (OUTER + 3) + 5 * 3 * INNER


def test_equal_instructions_share_a_schedule_and_others_have_none(folder):
    schedules = bundles.Schedules(folder)
    assert len(schedules) == 1
    assert schedules.of("weights") == schedules.of("y")
    assert schedules.of("other") is None


@pytest.mark.parametrize(
    ("clear", "unclear"),
    [
        ("%s9_s9, 5 /* loop", "%s9_s9, %s3_s2 /* loop"),
        ("%s9_s9 = sadd.s32 1,", "%s9_s9 = sadd.s32 4294967295,"),
    ],
)
def test_a_loop_without_clear_end_runs_as_often_as_the_program_says(clear, unclear):
    text = SCHEDULE.replace(clear, unclear)
    assert bundles.read(text, 8) == bundles.Schedule(OUTSIDE + 8 * OUTER + 8 * 3 * INNER)
    assert bundles.read(text) == bundles.Schedule(OUTSIDE + OUTER + 3 * INNER, unclear=1)


def test_bundles_of_a_program_are_those_of_its_instructions_each_trip(folder):
    each = OUTSIDE + 5 * OUTER + 5 * 3 * INNER
    found = hlo_cost.cost(PROGRAM, bundles.Schedules(folder))
    assert found.bundles == 6 * 2 * each
    assert hlo_cost.unclear(PROGRAM, bundles.Schedules(folder)) == {}
    assert (found.taps, found.products, found.copies) == (0, 6 * each, 6 * each)
    (loop,) = hlo_cost.loops(PROGRAM, bundles.Schedules(folder))
    assert loop.trip.bundles == 2 * each
    assert hlo_cost.cost(PROGRAM).bundles == 0


def test_what_has_no_schedule_or_no_clear_end_is_unclear_by_its_opcode(folder):
    (folder / "17-TLP-00-deduplication-map.txt").unlink()  # That of `weights`.
    start = PROGRAM.replace("  %y = ", "  %copy = (s32[], s32[]) copy-start(%count)\n  %y = ")
    assert hlo_cost.unclear(start, bundles.Schedules(folder)) == {"fusion": 6}
    assert hlo_cost.unclear(start, bundles.Schedules(folder / "none")) == {}
    endless = SCHEDULE.replace("%s9_s9, 5 /* loop", "%s9_s9, %s3_s2 /* loop")
    (folder / "17-sorted-02-final_bundles.txt").write_text(endless)
    line = "  %sorted = f32[8,8]{1,0} sort(%weights), dimensions={1}\n"
    twice = start.replace("  %y = ", f"{line}{line}  %y = ")
    found = hlo_cost.unclear(twice, bundles.Schedules(folder))
    assert list(found.items()) == [("sort", 12), ("fusion", 6)]
    summed = twice.replace("sort(%weights), dimensions={1}", "all-reduce(%weights), to_apply=%add")
    assert hlo_cost.unclear(summed, bundles.Schedules(folder)) == {"fusion": 6}


def test_slices_taken_as_one_array_are_free_and_a_scalar_takes_a_bundle(folder):
    schedules = bundles.Schedules(folder)
    before = hlo_cost.cost(PROGRAM, schedules)
    called = '%as_one = f32[8,8]{1,0} custom-call(%weights), custom_call_target="ConcatBitcast"'
    program = PROGRAM.replace("  %y = ", f"  {called}\n  %y = ")
    assert hlo_cost.cost(program, schedules) == before
    counter = "%counter = s32[]{:T(128)} add(%count, %count)"
    program = program.replace("  %y = ", f"  {counter}\n  %y = ")
    assert hlo_cost.cost(program, schedules).bundles == before.bundles + 6
    assert hlo_cost.unclear(program, schedules) == {}
    for line in (
        "%copied = (s32[], s32[]) copy-start(%count)",
        "%summed = s32[] all-reduce(%count), to_apply=%add",
    ):
        moved = program.replace("  %y = ", f"  {line}\n  %y = ")
        assert hlo_cost.cost(moved, schedules).bundles == before.bundles + 6
    reduced = program.replace("add(%count, %count)", "reduce(%weights, %count), to_apply=%add")
    assert hlo_cost.cost(reduced, schedules).bundles == before.bundles
    assert hlo_cost.unclear(reduced, schedules) == {"reduce": 6}
