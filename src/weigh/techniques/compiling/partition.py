"""What a compiled forward pass keeps for its backward pass: AOTAutograd's min-cut partitioner. Modelled.

Read: torch/_functorch/partitioners.py (2.13), `min_cut_rematerialization_partition`, with its defaults. Every tensor
of the forward pass either is kept, at the price of its bytes (twice that if nothing would write it anyway, and more the
further it is from the backward pass), or is made again, where that is allowed. Not allowed: what is no pointwise
operation or reduction; what an operation of the backward pass that fuses with nothing reads; reductions to less than a
quarter; what reads a tensor on both sides of something that does not fuse; links of chains that are too long. The
cheapest set that the backward pass can be computed from is a minimum cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from weigh.techniques.compiling.graph import FUSIBLE, VIEW, Graph, Node, is_fusible
from weigh.techniques.compiling.min_cut import INFINITE, Network

FAR = 10**9
"""The distance of what no backward pass reads."""
LONG_CHAIN = 100
"""Nodes after which a chain of fusible ones is cut."""
SMALLER = 4
"""Reductions to less than this part of what they read are kept."""


@dataclass(frozen=True, slots=True)
class Joint:
    """A forward pass and its backward pass in one graph."""

    graph: Graph
    inputs: tuple[Node, ...]
    tangents: tuple[Node, ...]
    """The gradients that come from outside."""
    outputs: tuple[Node, ...]
    gradients: tuple[Node | None, ...]
    """What is returned for each input."""


def closure(nodes: Sequence[Node]) -> set[Node]:
    """Everything that these are computed from, and themselves."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.inputs)
    return found


def kept(joint: Joint) -> list[Node]:
    """The nodes whose results the backward pass starts from, in order, inputs among them."""
    nodes = _alive(joint)
    forward = closure(joint.outputs) & nodes
    forward.update(joint.inputs)
    follows: set[Node] = set(joint.tangents)
    for node in joint.graph.nodes:
        if node in follows:
            follows.update(u for u in node.users if u in nodes)
    required = follows | {g for g in joint.gradients if g is not None}
    users = {n: [u for u in n.users if u in nodes] for n in nodes}
    ordered = [n for n in joint.graph.nodes if n in nodes]
    distance = _distances(ordered, users, forward)
    order = {n: i for i, n in enumerate(n for n in ordered if n in forward)}
    inputs = set(joint.inputs)
    banned = {n for n in ordered if n in inputs}
    outputs = set(joint.outputs)
    banned.update(n for n in ordered if n in forward and _is_banned(n, users, forward, outputs))
    _ban_far_uses(order, users, banned)
    _ban_long_chains(order, users, banned)
    written = inputs | outputs | {n for n in ordered if not all(is_fusible(n, u) for u in users[n])}
    return _cut(ordered, users, required, follows, banned, distance, written)


def _alive(joint: Joint) -> set[Node]:
    """All but dead code."""
    wanted = closure([*joint.outputs, *(g for g in joint.gradients if g is not None)])
    return wanted | set(joint.inputs) | set(joint.tangents)


def _distances(ordered: list[Node], users: dict[Node, list[Node]], forward: set[Node]) -> dict[Node, int]:
    """How many steps every node is from the backward pass."""
    distance: dict[Node, int] = {}
    for node in reversed(ordered):
        if node not in forward:
            distance[node] = 0
        else:
            distance[node] = min((distance[u] + 1 for u in users[node]), default=FAR)
    return distance


def _is_banned(node: Node, users: dict[Node, list[Node]], forward: set[Node], outputs: set[Node]) -> bool:
    """`should_ban_recomputation`; views are always made again. What returns an output fuses with nothing."""
    if node.kind == VIEW or node.op in ("part", "input"):
        return False
    if node.kind != FUSIBLE:
        return True
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current in outputs:
            return True
        for user in users[current]:
            if user not in forward and not is_fusible(current, user):
                return True
            if user.kind == VIEW:
                waiting.append(user)
    return node.num_bytes * SMALLER < sum(i.num_bytes for i in node.inputs)


def _ban_far_uses(order: dict[Node, int], users: dict[Node, list[Node]], banned: set[Node]) -> None:
    """A fusible node that reads something beyond the next thing that does not fuse with it."""
    for node in order:
        uses = [u for u in users[node] if u in order]
        if not uses:
            continue
        first = _first_unfusible(uses, max(order[u] for u in uses), order, users)
        for user in uses:
            if order[user] > first and is_fusible(node, user) and user.kind != VIEW:
                banned.add(user)


def _first_unfusible(start: list[Node], last: int, order: dict[Node, int], users: dict[Node, list[Node]]) -> int:
    seen = {(order[n], True) for n in start}
    heap = [(order[n], True, n) for n in start]
    heapq.heapify(heap)
    while heap:
        place, fusible, node = heapq.heappop(heap)
        if not fusible:
            return place
        for user in users[node]:
            if user in order and order[user] <= last:
                entry = (order[user], is_fusible(node, user))
                if entry not in seen:
                    seen.add(entry)
                    heapq.heappush(heap, (*entry, user))
    return last


def _ban_long_chains(order: dict[Node, int], users: dict[Node, list[Node]], banned: set[Node]) -> None:
    visited: set[Node] = set()
    for start, first in order.items():
        heap = [(first, start)]
        while heap:
            place, current = heapq.heappop(heap)
            if current in visited:
                continue
            visited.add(current)
            if place > first + LONG_CHAIN and not heap:
                if current.kind != VIEW:
                    banned.add(current)
                break
            for user in users[current]:
                if user in order and is_fusible(current, user) and user not in banned:
                    heapq.heappush(heap, (order[user], user))


def _cut(
    ordered: list[Node],
    users: dict[Node, list[Node]],
    required: set[Node],
    follows: set[Node],
    banned: Collection[Node],
    distance: dict[Node, int],
    written: set[Node],
) -> list[Node]:
    place = {n: 2 * i for i, n in enumerate(ordered)}
    source, sink = 2 * len(ordered), 2 * len(ordered) + 1
    network = Network(sink + 1)
    for node in ordered:
        into, out = place[node], place[node] + 1
        if node in follows:
            network.add(into, sink, INFINITE)
            continue
        if node in required:
            network.add(out, sink, INFINITE)
        if node in banned:
            network.add(source, into, INFINITE)
        if node.kind == VIEW or node.dtype is None:
            weight = INFINITE
        else:
            weight = int(node.num_bytes * 1.1 ** max(min(distance[node], 100), 1))
            if node not in written:
                weight *= 2
        network.add(into, out, weight)
        for user in users[node]:
            network.add(out, place[user], INFINITE)
    before = network.before_the_cut(source, sink)
    return [n for n in ordered if n not in follows and place[n] in before and place[n] + 1 not in before]
