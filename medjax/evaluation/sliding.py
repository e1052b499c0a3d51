"""Sliding windows: a model of one patch size predicts volumes of any size.

Windows overlap, and a voxel's result is their mean, weighted by a Gaussian about each
window's middle, because a model sees least near its border. The weights of each voxel
are normalised beforehand, one axis after the other, so that nothing is divided
afterwards and only the volume itself is in memory, however many windows there are.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from medjax.errors import InputError

SIGMA = 1 / 8  # The Gaussian's, in patch sizes.


class Windows(NamedTuple):
    """The windows in the order of reading; each occurs once for each view."""

    start: np.ndarray  # [N, 3] int32, the first voxel.
    weight: tuple[np.ndarray, ...]  # Three of [N, size], the voxels' along D, H and W.
    view: np.ndarray  # [N] int32, number of the mirroring.


def volume_probability(
    probability: Callable[[ArrayTree, Array], Array],
    variables: ArrayTree,
    image: np.ndarray,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    flips: Sequence[int] = (),
    batch: int = 1,
    slices: int = 1,
    bucket: int = 64,
) -> np.ndarray:
    """Runs a model over a whole volume, window by window: [D, H, W, K] float32.

    Volumes whose sizes round up to the same multiples of `bucket` share a compiled
    program. The number of windows is its argument, so padding adds no windows.

    Args:
      probability: (variables, [B, *patch, channels]) -> [B, *patch, K], compiled once.
      image: [D, H, W, C]; padded with 0 if it is smaller than the patch.
      patch: three sizes in voxels for a 3-D model; two for a model of axial slices,
        which gets [B, h, w, slices * C].
      overlap: of neighbouring windows, in patch sizes, in [0, 1); more if the windows
        don't fit evenly, because they are spread from edge to edge.
      flips: axes of the volume (0, 1, 2 for D, H, W; 2 is left-right). The result is
        the mean over all mirrorings along any of them, 2 to the power of their number.
      batch: B, windows at once.
      slices: neighbouring slices that a model of slices sees, odd: its channels are
        the lowest one's C, then the next one's, and its result is the middle one's. The
        volume's first and last slice are repeated outwards.
      bucket: in voxels.

    Raises:
      InputError: an impossible option.

    Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203: Gaussian weights and
    windows that overlap by half; sigma and the spacing of the windows as in its code.
    """
    check_windows(patch, overlap, flips, batch)
    planar = len(patch) == 2
    window = (1, *patch) if planar else tuple(patch)
    space = np.maximum(image.shape[:3], window)
    room = -(-space // bucket) * bucket
    views = mirrorings(flips)
    windows = place_windows(space, window, overlap, len(views))
    capacity = len(place_windows(room, window, overlap, len(views)).start)
    at_once = batch * jax.local_device_count()
    before = (space - image.shape[:3]) // 2
    total = _blend(
        probability,
        variables,
        _padded(image, room, before, slices),
        jax.tree.map(lambda x: _dealt(x, capacity, batch), windows),
        -(-len(windows.start) // at_once),
        views=views,
        batch=batch,
        slices=slices,
        planar=planar,
    )
    inside = zip(before, image.shape[:3], strict=True)
    return np.asarray(total)[tuple(slice(a, a + n) for a, n in inside)].copy()


def mirrorings(flips: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All subsets of the axes, none first."""
    axes = sorted(set(flips))
    sizes = range(len(axes) + 1)
    return tuple(subset for n in sizes for subset in itertools.combinations(axes, n))


def place_windows(
    space: Sequence[int], window: Sequence[int], overlap: float, views: int
) -> Windows:
    """Spreads windows over a volume, each once a view; each voxel's weights sum to 1.

    space: the volume's three sizes, none below the window's.
    """
    starts, weights = zip(
        *(_axis(n, p, overlap) for n, p in zip(space, window, strict=True)), strict=True
    )
    counts = [len(start) for start in starts]
    *index, view = np.indices((*counts, views), np.int32).reshape(4, -1)
    weights = weights[0] / np.float32(views), *weights[1:]
    return Windows(
        np.stack([start[i] for start, i in zip(starts, index, strict=True)], axis=1),
        tuple(weight[i] for weight, i in zip(weights, index, strict=True)),
        view,
    )


def _axis(size: int, window: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Starts [n] of the windows along one axis, and their weights [n, window]."""
    step = max(1, int(window * (1 - overlap) + 1e-6))  # 10 * (1 - 0.8) is below 2.
    count = -(-int(size - window) // step) + 1
    start = np.rint(np.linspace(0, size - window, count)).astype(np.int32)
    weight = np.tile(gaussian(window), (count, 1))
    place = start[:, None] + np.arange(window)
    weight /= np.bincount(place.ravel(), weight.ravel())[place]
    return start, weight.astype(np.float32)


def gaussian(window: int) -> np.ndarray:
    """[window], the weights of a window's voxels along one axis, 1 in its middle."""
    away = (np.arange(window) - (window - 1) / 2) / (SIGMA * window)
    return np.exp(-(away**2) / 2)


def _dealt(x: np.ndarray, capacity: int, batch: int) -> np.ndarray:
    """[N, ...] -> [capacity or more, ...], in equal parts, one for each local device.

    Batches are dealt to the devices in turn, so that all have equally many, to one;
    the places without a window hold zeros, and are last in each part.
    """
    devices = jax.local_device_count()
    room = -(-capacity // (batch * devices)) * batch * devices
    x = np.pad(x, [(0, room - len(x))] + [(0, 0)] * (x.ndim - 1))
    hands = x.reshape(-1, devices, batch, *x.shape[1:]).swapaxes(0, 1)
    return hands.reshape(x.shape)


@functools.partial(
    jax.jit, static_argnames=("probability", "views", "batch", "slices", "planar")
)
def _blend(probability, variables, image, windows, steps, **options) -> Array:
    """[D, H, W, K] float32: the sum of the model's weighted results.

    Of each device's windows the first steps * batch are read. The image is
    [D + slices - 1, H, W, C].
    """

    def of_device(*arguments):
        return lax.psum(_blended(probability, *arguments, **options), "device")

    each, together = PartitionSpec("device"), PartitionSpec()
    return jax.shard_map(
        of_device,
        mesh=Mesh(jax.local_devices(), ("device",)),
        in_specs=(together, together, each, together),
        out_specs=together,
        check_vma=False,
    )(variables, image, windows, steps)


def _blended(
    probability, variables, image, windows, steps, *, views, batch, slices, planar
) -> Array:
    """What `_blend` says, of one device's windows."""
    written = [weight.shape[1] for weight in windows.weight]
    seen = (written[0] + slices - 1, *written[1:], image.shape[-1])

    def model(patches):  # [B, d, h, w, C] -> [B, d, h, w, K]
        if planar:
            patches = jnp.moveaxis(patches, 1, 3)  # [B, h, w, slices, C]
            patches = patches.reshape(*patches.shape[:3], -1)
        result = probability(variables, patches)
        return result[:, None] if planar else result

    def mirror(voxels, view):  # [d, h, w, C]; its own inverse
        ways = [functools.partial(jnp.flip, axis=axes) for axes in views]
        return lax.switch(view, ways, voxels)

    def read(window):
        return mirror(lax.dynamic_slice(image, (*window.start, 0), seen), window.view)

    def write(total, row):
        window, result = row
        d, h, w = window.weight
        weight = d[:, None, None] * h[:, None] * w
        result = mirror(result, window.view).astype(jnp.float32) * weight[..., None]
        at = (*window.start, 0)
        result += lax.dynamic_slice(total, at, result.shape)
        return lax.dynamic_update_slice(total, result, at), None

    def step(number, total):
        few = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, number * batch, batch), windows
        )
        return lax.scan(write, total, (few, model(lax.map(read, few))))[0]

    patches = jax.ShapeDtypeStruct((batch, *seen), image.dtype)
    regions = jax.eval_shape(model, patches).shape[-1]
    space = (image.shape[0] - slices + 1, *image.shape[1:3])
    return lax.fori_loop(0, steps, step, jnp.zeros((*space, regions)))


def _padded(image, room, before, slices) -> np.ndarray:
    """float32 [room[0] + slices - 1, room[1], room[2], C], the image after `before`."""
    half = slices // 2
    around = [
        (b, r - b - n) for b, r, n in zip(before, room, image.shape, strict=False)
    ]
    image = np.pad(image, [(half, half), (0, 0), (0, 0), (0, 0)], mode="edge")
    return np.pad(image.astype(np.float32), [*around, (0, 0)])


def check_windows(
    patch: Sequence[int], overlap: float, flips: Sequence[int], batch: int, **_: int
) -> None:
    """Raises InputError for options that would fail inside jit or be ignored."""
    if min(patch) < 1:
        raise InputError(f"patch.size={patch}: give sizes in voxels")
    if not 0 <= overlap < 1:
        raise InputError(
            f"evaluation.overlap={overlap}: give a share of the patch below 1, or 0"
        )
    if not set(flips) <= set(range(3 - len(patch), 3)):
        axes = "0, 1 and 2" if len(patch) == 3 else "1 and 2, for a model of slices"
        raise InputError(f"evaluation.flips={flips}: the axes are {axes}")
    if batch < 1:
        raise InputError(f"evaluation.batch={batch}: give 1 window at once, or more")
