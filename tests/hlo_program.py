"""The text of an optimized program: a loop of 6 trips over a slice and a product."""

# ruff: noqa: E501

PROGRAM = """
HloModule scanned, is_scheduled=true

%fused_slice (param_0: f32[6,8,8], param_1: s32[]) -> f32[8,8] {
  %param_0 = f32[6,8,8]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice = f32[1,8,8]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,8}
  ROOT %bitcast = f32[8,8]{1,0:T(8,128)S(1)} bitcast(%dynamic-slice)
}

%fused_product (param_0.1: bf16[4,8], param_1.1: f32[8,8]) -> bf16[4,8] {
  %param_0.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = f32[8,8]{1,0:T(8,128)S(1)} parameter(1)
  %convolution = f32[4,8]{1,0:T(8,128)} convolution(%param_0.1, %param_1.1), dim_labels=bf_io->bf
  %add = f32[4,8]{1,0:T(8,128)} add(%convolution, %convolution)
  ROOT %convert = bf16[4,8]{1,0:T(8,128)(2,1)} convert(%add)
}

%body (state: (s32[], bf16[4,8], f32[6,8,8])) -> (s32[], bf16[4,8], f32[6,8,8]) {
  %state = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, f32[6,8,8]{2,1,0:T(8,128)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %stack = f32[6,8,8]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %weights = f32[8,8]{1,0:T(8,128)S(1)} fusion(%stack, %count), kind=kLoop, calls=%fused_slice
  %y = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%x, %weights), kind=kOutput, calls=%fused_product
  ROOT %next = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, f32[6,8,8]{2,1,0:T(8,128)}) tuple(%count, %y, %stack)
}

%condition (state.1: (s32[], bf16[4,8], f32[6,8,8])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, f32[6,8,8]{2,1,0:T(8,128)}) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %trips = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%count.1, %trips), direction=LT
}

ENTRY %main (start: (s32[], bf16[4,8], f32[6,8,8])) -> bf16[4,8] {
  %start = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, f32[6,8,8]{2,1,0:T(8,128)}) parameter(0)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, f32[6,8,8]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(f)/stage/while"}
  ROOT %out = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""
