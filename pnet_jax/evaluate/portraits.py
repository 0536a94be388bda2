"""Portraits of repeated scans: similarity within and between participants, to a reference, and of networks without structure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pnet_jax.evaluate.answer import Figure, Line, Row, mean_row
from pnet_jax.evaluate.repeats import Repeats, per_subject
from pnet_jax.ops.portrait import PortraitSettings, portrait_divergence

DENSITIES = (0.05, 0.10, 0.15, 0.20)
BLOCK = 128  # number of networks whose paths are held in memory
NOISE_PAIRS = 16  # number of scan pairs with shuffled edges
CONSTANT = "constant network"
WEIGHTING = {"author": "pair-weighted", "netrd": "node-weighted"}  # the two published definitions, named by their weighting
PAIR_BUCKET = 128  # pairs are padded to a multiple, to limit the number of compiled shapes


def standard_settings(densities: Sequence[float] = DENSITIES) -> tuple[PortraitSettings, ...]:
    """Return both conventions, binary graphs (hops) and weighted ones (length 1/w), at each density with the spanning tree."""
    every = itertools.product(("author", "netrd"), ("hops", "1/w"), densities)
    return tuple(PortraitSettings(convention=convention, lengths=lengths, density=density) for convention, lengths, density in every)


def shown(settings: PortraitSettings) -> str:
    """Return the settings that distinguish the rows of a table."""
    graph = "binary" if settings.lengths == "hops" else f"weighted, {settings.lengths}"
    density = "all edges" if settings.density is None else f"{100 * settings.density:.0f} %"
    return f"{WEIGHTING[settings.convention]}, {graph}, {density}"


def described(settings: PortraitSettings) -> str:
    """Describe the settings in words that need no further context."""
    graph = "unweighted graphs" if settings.lengths == "hops" else f"weighted graphs, path length {settings.lengths},"
    edges = "all edges" if settings.density is None else f"the strongest {100 * settings.density:.0f} % of the edges"
    counted = "pair of nodes" if settings.convention == "author" else "node at each distance"
    return f"{graph} of {edges}; every {counted} has equal weight"


def words(settings: PortraitSettings) -> dict[str, object]:
    """Return every setting."""
    return dataclasses.asdict(settings)


def similarity(
    networks: Float[np.ndarray, "S N N"], pairs: Int[np.ndarray, "P 2"], settings: PortraitSettings, block: int = BLOCK
) -> Float[np.ndarray, " P"]:
    """Return 1 − portrait divergence of pairs of networks.

    Args:
      networks: Symmetric weights; NaN for absent nodes, `[S, N, N]`.
      pairs: Indices of the two networks, `[P, 2]`.
      settings: Settings of the portraits.
      block: Largest number of networks at a time, at least 2; pairs whose networks are close together in `pairs` share a block.

    Memory: about 1.5 MB per network of a block at 200 nodes.
    """
    out, size = np.full(len(pairs), np.nan), min(block, len(networks))
    for places, members in _blocks(pairs, max(size, 2)):
        held = np.full((max(size, 2), *networks.shape[1:]), np.nan, np.float32)
        held[: len(members)] = networks[members]
        own = np.searchsorted(members, pairs[places]).astype(np.int32)
        filled = np.pad(own, ((0, -len(own) % PAIR_BUCKET), (0, 0)))
        found = portrait_divergence(jnp.asarray(held), settings, pairs=jnp.asarray(filled))
        out[places] = 1 - np.asarray(found.divergence)[: len(own)]
    return out


def _blocks(pairs: Int[np.ndarray, "P 2"], most: int) -> Iterator[tuple[slice, Int[np.ndarray, " m"]]]:
    """Split pairs into runs, each with its sorted networks, at most `most`."""
    start, members = 0, set[int]()
    for place, pair in enumerate(pairs.tolist()):
        if len(members | set(pair)) > most:
            yield slice(start, place), np.array(sorted(members))
            start, members = place, set()
        members |= set(pair)
    if members:
        yield slice(start, len(pairs)), np.array(sorted(members))


def shuffled(networks: Float[np.ndarray, "S N N"], seed: int) -> Float[np.ndarray, "S N N"]:
    """Randomly permute the edges of each network among its node pairs, which preserves size, density and weights but not structure."""
    rng, out = np.random.default_rng(seed), np.array(networks, np.float32)
    i, j = np.triu_indices(networks.shape[-1], 1)
    for one in out:
        drawn = rng.permutation(one[i, j])
        one[i, j] = one[j, i] = drawn
    return out


# comparisons within and between participants, and with a reference


class Compared(NamedTuple):
    """Pairs of networks that contribute to one measure.

    Attributes:
      measure: Name of the measure.
      pairs: Indices of the two networks, `[P, 2]`.
      owner: Participant to which each pair is attributed, `[P]`.
    """

    measure: str
    pairs: Int[np.ndarray, "P 2"]
    owner: Int[np.ndarray, " P"]


def portrait_rows(
    matrices: Float[np.ndarray, "n N N"],
    repeats: Repeats,
    layer: str,
    settings: Sequence[PortraitSettings],
    reference: Float[np.ndarray, "m N N"] | None = None,
    *,
    others: int = 5,
    most: int = 200,
    seed: int = 0,
) -> list[Row]:
    """Return the rows of the table `portraits` for one kind of edges.

    Args:
      matrices: Networks of the scans of `repeats`.
      reference: Reference network of each participant, NaN if there is none.
    """
    networks, compared, participants = _comparisons(matrices, repeats, reference, others, most, seed)
    pairs = np.concatenate([one.pairs for one in compared])
    order = np.argsort(pairs[:, 0], kind="stable")  # pairs of the same networks share a block
    owner = np.concatenate([one.owner for one in compared])
    ends = np.cumsum([len(one.pairs) for one in compared])
    rows: list[Row] = []
    for setting in settings:
        values = np.full(len(pairs), np.nan)
        values[order] = similarity(networks, pairs[order], setting)
        each = {
            one.measure: per_subject(values[end - len(one.pairs) : end], owner[end - len(one.pairs) : end], len(repeats.names))[
                participants
            ]
            for one, end in zip(compared, ends, strict=True)
        }
        each["individual part"] = each["within"] - each["between"]
        if reference is not None:
            each["to reference, individual part"] = each["to reference"] - each["to other references"]
        name = f"{layer}, {shown(setting)}"
        rows.append(Row("portraits", name, f"1 - PDiv {CONSTANT}", float(np.nanmean(each.pop(CONSTANT)))))
        titles = [measure if "part" in measure else f"1 - PDiv {measure}" for measure in each]
        rows += [mean_row("portraits", name, title, own, seed) for title, own in zip(titles, each.values(), strict=True)]
    return rows


def _comparisons(
    matrices: np.ndarray, repeats: Repeats, reference: np.ndarray | None, others: int, most: int, seed: int
) -> tuple[np.ndarray, list[Compared], Int[np.ndarray, " m"]]:
    """Return all networks, the comparisons, and the participants included.

    Participants are in random order, and those compared with each other are neighbours.
    """
    n = len(repeats.names)
    order = np.random.default_rng(seed).permutation(n)
    participants = np.sort(order[:most])
    within, between = (_of_participants(pairs, repeats, participants) for pairs in (repeats.within, repeats.between(others, seed)))
    rank = np.argsort(order)
    places = np.argsort(rank[repeats.subject], kind="stable")
    at = np.argsort(places)
    stack, compared = [matrices[places]], []
    owner = repeats.subject
    compared.append(Compared("within", at[within], owner[within[:, 0]]))
    compared.append(Compared("between", at[between], owner[between[:, 0]]))
    size = len(matrices)
    noise = within[np.random.default_rng(seed).permutation(len(within))[:NOISE_PAIRS]]
    stack.append(shuffled(matrices[noise].reshape(-1, *matrices.shape[1:]), seed))
    compared.append(Compared("noise floor", size + np.arange(2 * len(noise)).reshape(-1, 2), owner[noise[:, 0]]))
    size += 2 * len(noise)
    stack.append(matrices.mean(0, keepdims=True))
    compared.append(Compared(CONSTANT, np.array([[size, size]]), participants[:1]))
    size += 1
    if reference is not None:
        stack.append(reference)
        compared += _to_reference(repeats, participants, at, ~np.isnan(reference).all((1, 2)), size, others, order)
    return np.concatenate(stack).astype(np.float32), compared, participants


def _of_participants(pairs: np.ndarray, repeats: Repeats, participants: np.ndarray) -> np.ndarray:
    return pairs[np.isin(repeats.subject[pairs], participants).all(1)]


def _to_reference(
    repeats: Repeats, participants: np.ndarray, at: np.ndarray, there: np.ndarray, size: int, others: int, order: np.ndarray
) -> list[Compared]:
    chosen = [s for s in order if there[s] and s in set(participants.tolist())]
    own, foreign = [], []
    for position, s in enumerate(chosen):
        following = [chosen[(position + 1 + step) % len(chosen)] for step in range(min(others, len(chosen) - 1))]
        for place in np.flatnonzero(repeats.subject == s):
            own.append((at[place], size + s, s))
            foreign += [(at[place], size + other, s) for other in following]
    tables = [np.array(found, int).reshape(-1, 3) for found in (own, foreign)]
    names = ("to reference", "to other references")
    return [Compared(name, table[:, :2], table[:, 2]) for name, table in zip(names, tables, strict=True)]


def curves(rows: Sequence[Row], layer: str, settings: Sequence[PortraitSettings]) -> list[Figure]:
    """Return the curves over densities, one figure per kind of graph, in the first convention."""
    out = []
    for lengths in dict.fromkeys(one.lengths for one in settings):
        chosen = [
            one for one in settings if one.lengths == lengths and one.density is not None and one.convention == settings[0].convention
        ]
        if len(chosen) < 2:
            continue
        x = np.array([100 * (one.density or math.nan) for one in chosen])
        lines = []
        for measure in ("within", "between", "noise floor", "to reference"):
            own = [row for one in chosen for row in rows if (row.name, row.measure) == (f"{layer}, {shown(one)}", f"1 - PDiv {measure}")]
            if len(own) == len(chosen):
                y, low, high = (np.array([getattr(row, part) for row in own]) for part in ("value", "low", "high"))
                lines.append(Line(measure, x, y, low, high))
        graph = "binary graphs" if lengths == "hops" else f"weighted graphs, length {lengths}"
        out.append(Figure(f"Portraits of {layer} networks, {graph}", "density, %", "1 - portrait divergence", tuple(lines)))
    return out
