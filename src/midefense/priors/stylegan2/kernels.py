"""StyleGAN2's layers on a GPU: the resampling filter, and what stands around a modulated convolution, each in one pass
over memory, in Triton. They add in a fixed order: the same bits twice.

torch's own take a convolution per channel for the filter, which is slow there, and five to seven passes for the rest.
Maps are [B, C, H, W] in either memory format, which is kept; sums are float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it: torch's own operations are taken
    triton = None

TAPS_SUM = 8.0  # of 1, 3, 3, 1
TILE = 2048  # numbers that a program works on
ROWS = 16  # of a resampled map, by one program


def usable(*maps: Tensor) -> bool:
    """Whether the kernels of this file can take these maps: on a GPU, of 16 or 32 bits, dense in one memory format."""
    return triton is not None and all(
        values.is_cuda and values.dtype in (torch.float32, torch.float16, torch.bfloat16) for values in maps
    )


def side_by_side(kind: torch.dtype) -> bool:
    """Whether convolutions of this kind want the channels of a pixel side by side: those of the tensor cores do, and
    turn maps round that come otherwise."""
    return kind in (torch.float16, torch.bfloat16) or (kind is torch.float32 and torch.backends.cudnn.allow_tf32)


def is_channels_last(maps: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side (and there are several)."""
    return not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)


def dense(maps: Tensor) -> Tensor:
    """The same in one of the two formats."""
    return maps if is_channels_last(maps) else maps.contiguous()


def like(maps: Tensor, values: Tensor) -> Tensor:
    """`values` in the memory format of `maps`."""
    return values.contiguous(memory_format=torch.channels_last) if is_channels_last(maps) else values.contiguous()


class Resampled(torch.autograd.Function):
    """Maps under the filter [1, 3, 3, 1] x [1, 3, 3, 1] of sum `gain`, after zeros between pixels (`up` - 1) and `pad`
    zeros before them, every `down`-th place kept; differentiable as often as wanted.

    The filter is symmetric, so the gradient is the same with `up` and `down` exchanged, and 3 - pad.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, up: int, down: int, pad: int, gain: float, size: tuple[int, int]) -> Tensor:
        ctx.how, ctx.size = (down, up, 3 - pad, gain), maps.shape[2:]
        return resampled(maps, up, down, pad, gain, size)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return Resampled.apply(gradient, *ctx.how, tuple(ctx.size)), None, None, None, None, None


def resampled(maps: Tensor, up: int, down: int, pad: int, gain: float, size: tuple[int, int]) -> Tensor:
    """See `Resampled`."""
    maps = dense(maps)
    batch, channels, height, width = maps.shape
    last = is_channels_last(maps)
    given = _empty(maps, batch, channels, *size)
    # a plane is what lies together of an image: a channel, or all of them, `inner` to a pixel
    planes, inner = (batch, channels) if last else (batch * channels, 1)
    block = 512 if size[1] * inner > 128 else 64  # few sizes: each is compiled
    across = triton.cdiv(size[1] * inner, block)
    tiles = across * triton.cdiv(size[0], ROWS)
    shape = (height, width * inner, size[0], size[1] * inner, inner, gain / TAPS_SUM**2, across, tiles)
    if up == down == 1:
        _blur[(planes * tiles,)](maps, given, *shape, pad, ROWS, block)
    else:
        _resample[(planes * tiles,)](maps, given, *shape, up, down, pad, ROWS, block)
    return given


def _empty(maps: Tensor, *shape: int) -> Tensor:
    """Room for other maps in the same memory format."""
    kind = torch.channels_last if is_channels_last(maps) else torch.contiguous_format
    return torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=kind)


class Finished(torch.autograd.Function):
    """rectify(maps * strength + bias + noise * loudness), clamped; in the memory of `maps`.

    Shapes: maps [B, C, H, W], strength [B, C], bias [C], noise [1 or B, 1, H, W] or None, loudness [] or None. A
    gradient of the gradient takes torch's operations.
    """

    @staticmethod
    def forward(
        ctx,
        maps: Tensor,
        strength: Tensor,
        bias: Tensor,
        noise: Tensor | None,
        loudness: Tensor | None,
        slope: float,
        clamp: float | None,
    ) -> Tensor:
        strength, bias = strength.float().contiguous(), bias.float().contiguous()
        noise = None if noise is None else noise.float().contiguous()
        loudness = None if loudness is None else loudness.float()
        batch, channels = strength.shape
        grid, shape = _tiles(maps)
        _finish[grid](
            maps, strength, bias, noise if noise is not None else bias, loudness if loudness is not None else bias,
            *shape, noise is not None, noise is not None and len(noise) > 1, slope,
            math.inf if clamp is None else clamp, *_block(maps),
        )  # fmt: skip
        ctx.mark_dirty(maps)
        ctx.save_for_backward(maps, strength, bias, noise, loudness)
        ctx.slope, ctx.clamp = slope, clamp
        return maps

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        outputs, strength, bias, noise, loudness = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _finish_back_in_torch(gradient, *ctx.saved_tensors, ctx.slope, ctx.clamp)
        gradient = like(outputs, gradient)
        batch, channels = strength.shape
        given = torch.empty_like(outputs)
        grid, shape = _tiles(outputs)
        learns = ctx.needs_input_grad[2] or ctx.needs_input_grad[4]
        sums = outputs.new_empty(3 if learns else 1, batch, grid[0], channels, dtype=torch.float32)
        _finish_back[grid](
            gradient, outputs, given, sums, strength, bias, noise if noise is not None else bias,
            loudness if loudness is not None else bias, *shape, noise is not None,
            noise is not None and len(noise) > 1, ctx.slope, math.inf if ctx.clamp is None else ctx.clamp,
            sums[0].numel(), learns, *_block(outputs),
        )  # fmt: skip
        along, *others = sums.sum(2)
        needed = ctx.needs_input_grad
        return (
            given,
            along / strength if needed[1] else None,
            others[0].sum(0) if needed[2] else None,
            None,
            others[1].sum() if noise is not None and needed[4] else None,
            None,
            None,
        )


class Scaled(torch.autograd.Function):
    """Maps [B, C, H, W] times a style [B, C]. A gradient of the gradient takes torch's operations."""

    @staticmethod
    def forward(ctx, maps: Tensor, style: Tensor) -> Tensor:
        ctx.save_for_backward(maps, style)
        return maps * style[:, :, None, None].to(maps.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        maps, style = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradient * style[:, :, None, None].to(gradient.dtype), _sums(gradient * maps)
        gradient, style = like(maps, gradient), style.float().contiguous()
        given = torch.empty_like(gradient)
        grid, shape = _tiles(maps)
        sums = maps.new_empty(len(maps), grid[0], maps.shape[1], dtype=torch.float32)
        _scale_back[grid](gradient, maps, given, sums, style, *shape, *_block(maps))
        return given, sums.sum(1)


class Picture(torch.autograd.Function):
    """A weight per image times maps, plus bias, clamped: a picture in float32.

    Shapes: maps [B, C, H, W], weights [B, K, C] with few K, bias [K]; given [B, K, H, W]. A matrix product of
    so few rows takes ten times as long, most of all the one for the gradient of `weights`. A gradient of the gradient
    takes torch's operations.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, weights: Tensor, bias: Tensor, clamp: float | None) -> Tensor:
        weights, bias = weights.float().contiguous(), bias.float().contiguous()
        batch, channels, height, width = maps.shape
        given = torch.empty(batch, len(bias), height, width, dtype=torch.float32, device=maps.device)
        grid, shape = _tiles(maps)
        wide = _block(maps)[1] if is_channels_last(maps) else 16
        tall = max(1, TILE // wide)
        _picture[(triton.cdiv(height * width, tall), batch)](
            maps, weights, bias, given, *shape, len(bias), triton.next_power_of_2(len(bias)),
            math.inf if clamp is None else clamp, tall, wide,
        )  # fmt: skip
        ctx.save_for_backward(maps, weights, given)
        ctx.clamp = clamp
        return given

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        maps, weights, picture = ctx.saved_tensors
        gradient = gradient.float().contiguous()
        if ctx.clamp is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, picture, -ctx.clamp, ctx.clamp)
        if torch.is_grad_enabled():
            own = torch.einsum("nkhw,nkc->nchw", gradient, weights).to(maps.dtype)
            return own, torch.einsum("nkhw,nchw->nkc", gradient, maps.float()), gradient.sum((0, 2, 3)), None
        batch, kinds, channels = weights.shape
        given = torch.empty_like(maps)
        grid, shape = _tiles(maps)
        sums = maps.new_empty(batch, grid[0], kinds, channels, dtype=torch.float32)
        _picture_back[grid](gradient, maps, given, sums, weights, *shape, kinds, *_block(maps))
        needed = ctx.needs_input_grad
        return (
            given,
            sums.sum(1) if needed[1] else None,
            gradient.sum((0, 2, 3)) if needed[2] else None,
            None,
        )


def _finish_back_in_torch(
    gradient: Tensor,
    outputs: Tensor,
    strength: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    loudness: Tensor | None,
    slope: float,
    clamp: float | None,
) -> tuple:
    """The gradient of `Finished`, itself differentiable."""
    offset = bias[None, :, None, None]
    if noise is not None:
        offset = offset + noise * loudness
    if clamp is not None:
        gradient = torch.ops.aten.hardtanh_backward(gradient, outputs, -clamp, clamp)
    along = _sums(gradient * outputs)
    gradient = torch.ops.aten.leaky_relu_backward(gradient, outputs, slope, True)
    along = (along - _sums(gradient * offset)) / strength
    given = gradient * strength[:, :, None, None].to(gradient.dtype)
    wide = gradient.float()
    loud = None if noise is None else (wide * noise).sum()
    return given, along, wide.sum((0, 2, 3)), None, loud, None, None


def _sums(maps: Tensor) -> Tensor:
    """Sums over places [B, C], float32."""
    return maps.sum((2, 3), dtype=torch.float32)


def _block(maps: Tensor) -> tuple[int, int]:
    """Places and channels of a tile."""
    if is_channels_last(maps):
        channels = 64 if maps.shape[1] > 32 else 32
        return TILE // channels, channels
    return (TILE if maps.shape[2] * maps.shape[3] > TILE // 8 else TILE // 8), 1


def _tiles(maps: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
    """The grid of tiles (of places, of channels, images), and places, channels and their strides."""
    batch, channels, height, width = maps.shape
    places, (tall, wide) = height * width, _block(maps)
    strides = (channels, 1) if is_channels_last(maps) else (1, places)
    return (triton.cdiv(places, tall), triton.cdiv(channels, wide), batch), (places, channels, *strides)


if triton is not None:

    @triton.jit
    def _filtered_row(source, y, r, height, width, inner, PAD: tl.constexpr):
        """Row y of a plane under 1, 3, 3, 1 along itself."""
        row = y + tl.zeros_like(r)  # Triton's interpreter takes no masks of a single number
        total = row.to(tl.float32) * 0
        for j in tl.static_range(4):
            column = r + (j - PAD) * inner
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            read = tl.load(source + row * width + column, mask=inside, other=0.0)
            total += (3.0 if j == 1 or j == 2 else 1.0) * read.to(tl.float32)
        return total

    @triton.jit
    def _blur(
        maps, given, height, width, out_height, out_width, inner, gain, across, tiles,
        PAD: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        tile, plane = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
        y = (tile // across) * RUN
        r = (tile % across) * BLOCK + tl.arange(0, BLOCK)
        source, target = maps + plane * height * width, given + plane * out_height * out_width
        first = _filtered_row(source, y - PAD, r, height, width, inner, PAD)
        second = _filtered_row(source, y + 1 - PAD, r, height, width, inner, PAD)
        third = _filtered_row(source, y + 2 - PAD, r, height, width, inner, PAD)
        for i in tl.static_range(RUN):
            fourth = _filtered_row(source, y + i + 3 - PAD, r, height, width, inner, PAD)
            total = (first + 3.0 * (second + third) + fourth) * gain
            mask = (r < out_width) & (y + i + tl.zeros_like(r) < out_height)
            tl.store(target + (y + i) * out_width + r, total.to(given.dtype.element_ty), mask=mask)
            first, second, third = second, third, fourth

    @triton.jit
    def _resample(
        maps, given, height, width, out_height, out_width, inner, gain, across, tiles,
        UP: tl.constexpr, DOWN: tl.constexpr, PAD: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        tile, plane = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
        r = (tile % across) * BLOCK + tl.arange(0, BLOCK)
        x, c = r // inner, r % inner
        source, target = maps + plane * height * width, given + plane * out_height * out_width
        for k in range(RUN):
            y = (tile // across) * RUN + k
            total = tl.zeros([BLOCK], tl.float32)
            for i in tl.static_range(4):
                row = y * DOWN + (i - PAD) + tl.zeros_like(r)
                there = (row >= 0) & (row < height * UP) & (row % UP == 0)
                for j in tl.static_range(4):
                    column = x * DOWN + (j - PAD)
                    inside = there & (column >= 0) & ((column // UP) * inner < width) & (column % UP == 0)
                    read = tl.load(source + (row // UP) * width + (column // UP) * inner + c, mask=inside, other=0.0)
                    weight = (3.0 if i == 1 or i == 2 else 1.0) * (3.0 if j == 1 or j == 2 else 1.0)
                    total += weight * read.to(tl.float32)
            mask = (r < out_width) & (y + tl.zeros_like(r) < out_height)
            tl.store(target + y * out_width + r, (total * gain).to(given.dtype.element_ty), mask=mask)

    @triton.jit
    def _finish(
        maps, strength, bias, noise, loudness, places, channels, place_stride, channel_stride,
        NOISY: tl.constexpr, EACH: tl.constexpr, slope, clamp, TALL: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        s = tl.program_id(0) * TALL + tl.arange(0, TALL)
        c = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        n = tl.program_id(2).to(tl.int64)
        mask = (s < places)[:, None] & (c < channels)[None, :]
        where = maps + n * places * channels + s[:, None] * place_stride + c[None, :] * channel_stride
        values = tl.load(where, mask=mask, other=0.0).to(tl.float32)
        values = values * tl.load(strength + n * channels + c, mask=c < channels, other=1.0)[None, :]
        values += tl.load(bias + c, mask=c < channels, other=0.0)[None, :]
        if NOISY:
            start = n * places if EACH else 0
            values += (tl.load(noise + start + s, mask=s < places, other=0.0) * tl.load(loudness))[:, None]
        values = tl.where(values > 0, values, values * slope)
        values = tl.minimum(tl.maximum(values, -clamp), clamp)
        tl.store(where, values.to(maps.dtype.element_ty), mask=mask)

    @triton.jit
    def _finish_back(
        gradient, outputs, given, sums, strength, bias, noise, loudness, places, channels, place_stride,
        channel_stride, NOISY: tl.constexpr, EACH: tl.constexpr, slope, clamp, apart,
        LEARNS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        s = tl.program_id(0) * TALL + tl.arange(0, TALL)
        c = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        n = tl.program_id(2).to(tl.int64)
        mask = (s < places)[:, None] & (c < channels)[None, :]
        where = n * places * channels + s[:, None] * place_stride + c[None, :] * channel_stride
        result = tl.load(outputs + where, mask=mask, other=0.0).to(tl.float32)
        slant = tl.load(gradient + where, mask=mask, other=0.0).to(tl.float32)
        slant = tl.where((result > -clamp) & (result < clamp), slant, 0.0)
        # below zero outputs are `slope` times what was rectified, and its gradient `slope` times theirs: the product of
        # outputs and their gradient is that of what was rectified and its own
        along = slant * result
        slant = tl.where(result > 0, slant, slant * slope)
        offset = tl.load(bias + c, mask=c < channels, other=0.0)[None, :] + tl.zeros([TALL, WIDE], tl.float32)
        spread = sums + n * tl.num_programs(0) * channels + tl.program_id(0) * channels + c
        if NOISY:
            start = n * places if EACH else 0
            drawn = tl.load(noise + start + s, mask=s < places, other=0.0)[:, None]
            offset += drawn * tl.load(loudness)
            if LEARNS:
                tl.store(spread + 2 * apart, tl.sum(slant * drawn, 0), mask=c < channels)
        tl.store(spread, tl.sum(along - slant * offset, 0), mask=c < channels)
        if LEARNS:
            tl.store(spread + apart, tl.sum(slant, 0), mask=c < channels)
        slant *= tl.load(strength + n * channels + c, mask=c < channels, other=0.0)[None, :]
        tl.store(given + where, slant.to(given.dtype.element_ty), mask=mask)

    @triton.jit
    def _scale_back(
        gradient, maps, given, sums, style, places, channels, place_stride, channel_stride,
        TALL: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        s = tl.program_id(0) * TALL + tl.arange(0, TALL)
        c = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        n = tl.program_id(2).to(tl.int64)
        mask = (s < places)[:, None] & (c < channels)[None, :]
        where = n * places * channels + s[:, None] * place_stride + c[None, :] * channel_stride
        slant = tl.load(gradient + where, mask=mask, other=0.0).to(tl.float32)
        values = tl.load(maps + where, mask=mask, other=0.0).to(tl.float32)
        spread = sums + n * tl.num_programs(0) * channels + tl.program_id(0) * channels + c
        tl.store(spread, tl.sum(slant * values, 0), mask=c < channels)
        slant *= tl.load(style + n * channels + c, mask=c < channels, other=0.0)[None, :]
        tl.store(given + where, slant.to(given.dtype.element_ty), mask=mask)

    @triton.jit
    def _picture(
        maps, weights, bias, given, places, channels, place_stride, channel_stride,
        KINDS: tl.constexpr, ROOM: tl.constexpr, clamp, TALL: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        s = tl.program_id(0) * TALL + tl.arange(0, TALL)
        n = tl.program_id(1).to(tl.int64)
        kind = tl.arange(0, ROOM)
        total = tl.zeros([TALL, ROOM], tl.float32)
        for start in range(0, channels, WIDE):
            c = start + tl.arange(0, WIDE)
            mask = (s < places)[:, None] & (c < channels)[None, :]
            where = maps + n * places * channels + s[:, None] * place_stride + c[None, :] * channel_stride
            values = tl.load(where, mask=mask, other=0.0).to(tl.float32)
            for k in tl.static_range(KINDS):
                weight = tl.load(weights + (n * KINDS + k) * channels + c, mask=c < channels, other=0.0)
                total += tl.sum(values * weight[None, :], 1)[:, None] * tl.where(kind == k, 1.0, 0.0)[None, :]
        total += tl.load(bias + kind, mask=kind < KINDS, other=0.0)[None, :]
        total = tl.minimum(tl.maximum(total, -clamp), clamp)
        where = given + n * places * KINDS + kind[None, :] * places + s[:, None]
        tl.store(where, total, mask=(s < places)[:, None] & (kind < KINDS)[None, :])

    @triton.jit
    def _picture_back(
        gradient, maps, given, sums, weights, places, channels, place_stride, channel_stride,
        KINDS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        s = tl.program_id(0) * TALL + tl.arange(0, TALL)
        c = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        n = tl.program_id(2).to(tl.int64)
        mask = (s < places)[:, None] & (c < channels)[None, :]
        where = n * places * channels + s[:, None] * place_stride + c[None, :] * channel_stride
        values = tl.load(maps + where, mask=mask, other=0.0).to(tl.float32)
        slant = tl.zeros([TALL, WIDE], tl.float32)
        for k in tl.static_range(KINDS):
            own = tl.load(gradient + (n * KINDS + k) * places + s, mask=s < places, other=0.0)[:, None]
            weight = tl.load(weights + (n * KINDS + k) * channels + c, mask=c < channels, other=0.0)
            slant += own * weight[None, :]
            spread = sums + ((n * tl.num_programs(0) + tl.program_id(0)) * KINDS + k) * channels + c
            tl.store(spread, tl.sum(own * values, 0), mask=c < channels)
        tl.store(given + where, slant.to(given.dtype.element_ty), mask=mask)
