"""Counting what the kernels of a program for a GPU move."""

import pytest

from benchmarks.gpu_program import BANDWIDTH, LAUNCH, Kernel, Program, array_bytes

TEXT = """HloModule jit_f, is_scheduled=true

%sliced (p0: f64[100,8], p1: s32[]) -> f64[1,8] {
  %p0 = f64[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice.1 = f64[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%updated (p0: f64[100,8], p1: f64[1,8], p2: s32[]) -> f64[100,8] {
  %p0 = f64[100,8]{1,0} parameter(0)
  %p1 = f64[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f64[100,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)
}

%body (state: (s32[], f64[100,8])) -> (s32[], f64[100,8]) {
  %state = (s32[], f64[100,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %x = f64[100,8]{1,0} get-tuple-element(%state), index=1
  %row = f64[1,8]{1,0} fusion(%x, %n), kind=kLoop, calls=%sliced, metadata={op_name="jit(f)/row"}
  %next = f64[100,8]{1,0} fusion(%x, %row, %n), kind=kLoop, calls=%updated
  ROOT %both = (s32[], f64[100,8]{1,0}) tuple(%n, %next)
}

%test (state: (s32[], f64[100,8])) -> pred[] {
  %state = (s32[], f64[100,8]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: f64[100,8], b: f64[8,4]) -> (f64[100,4], f64[100,8]) {
  %a = f64[100,8]{1,0} parameter(0)
  %b = f64[8,4]{1,0} parameter(1)
  %start = s32[] constant(0)
  %state = (s32[], f64[100,8]{1,0}) tuple(%start, %a)
  %loop = (s32[], /*index=1*/f64[100,8]{1,0}) while(%state), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %x = f64[100,8]{1,0} get-tuple-element(%loop), index=1
  %product = (f64[100,4]{1,0}, s8[4096]{0}) custom-call(%x, %b), custom_call_target="__cublas$gemm"
  %c = f64[100,4]{1,0} get-tuple-element(%product), index=0
  ROOT %result = (f64[100,4]{1,0}, f64[100,8]{1,0}) tuple(%c, %x)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def kernels():
    return {kernel.name: kernel for kernel in Program.parse(TEXT).kernels()}


def test_kernels_are_those_of_loops_as_often_as_they_run(kernels):
    assert {name: kernel.runs for name, kernel in kernels.items()} == {
        "row": 7,
        "next": 7,
        "product": 1,
    }
    assert kernels["row"].loops == (7,) and kernels["row"].where == "jit(f)/row"


def test_of_what_is_sliced_or_updated_only_that_part_moves(kernels):
    row = 8 * 8
    assert kernels["row"].bytes == row + 4 + row  # read, with its number, and written
    assert kernels["next"].bytes == row + 4 + row


def test_a_library_moves_its_operands_and_results(kernels):
    assert kernels["product"].bytes == 8 * (800 + 32 + 400)


def test_no_kernel_takes_less_than_its_launch():
    assert Kernel("", "", "", bytes=1, loops=(3,)).least_s == 3 * LAUNCH
    assert Kernel("", "", "", bytes=10**9).least_s == 10**9 / BANDWIDTH


def test_bytes_of_tuples():
    assert array_bytes("(f64[2,3]{1,0}, s32[], pred[5]{0})") == 48 + 4 + 5
