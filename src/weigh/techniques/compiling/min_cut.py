"""The cheapest cut between two ends of a directed graph (Dinic's algorithm)."""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 200
"""A capacity that no cut can pay."""


class Network:
    """Edges with capacities between vertices 0 to n - 1."""

    def __init__(self, vertices: int) -> None:
        self.heads: list[int] = []
        self.capacity: list[int] = []
        self.leaving: list[list[int]] = [[] for _ in range(vertices)]

    def add(self, tail: int, head: int, capacity: int) -> None:
        """An edge, and its reverse with nothing."""
        self.leaving[tail].append(len(self.heads))
        self.leaving[head].append(len(self.heads) + 1)
        self.heads += [head, tail]
        self.capacity += [capacity, 0]

    def before_the_cut(self, source: int, sink: int) -> set[int]:
        """The source's side of a cheapest cut, the one nearest to the sink (as `networkx.minimum_cut` chooses)."""
        while levels := self._levels(source, sink):
            self._saturate(source, sink, levels)
        beyond, queue = {sink}, deque([sink])
        while queue:
            vertex = queue.popleft()
            for edge in self.leaving[vertex]:
                tail = self.heads[edge]
                if tail not in beyond and self.capacity[edge ^ 1]:
                    beyond.add(tail)
                    queue.append(tail)
        return set(range(len(self.leaving))) - beyond

    def _levels(self, source: int, sink: int) -> list[int]:
        """The distance of every vertex from the source over edges that have room; nothing if the sink has none."""
        levels = [-1] * len(self.leaving)
        levels[source] = 0
        queue = deque([source])
        while queue:
            vertex = queue.popleft()
            for edge in self.leaving[vertex]:
                head = self.heads[edge]
                if levels[head] < 0 and self.capacity[edge]:
                    levels[head] = levels[vertex] + 1
                    queue.append(head)
        return levels if levels[sink] >= 0 else []

    def _saturate(self, source: int, sink: int, levels: list[int]) -> None:
        """Fill paths of growing level until none is left."""
        heads, capacity, leaving = self.heads, self.capacity, self.leaving
        tried = [0] * len(leaving)
        path: list[int] = []
        vertex = source
        while True:
            if vertex == sink:
                room = min(capacity[edge] for edge in path)
                first = None
                for place, edge in enumerate(path):
                    capacity[edge] -= room
                    capacity[edge ^ 1] += room
                    if first is None and not capacity[edge]:
                        first = place
                assert first is not None
                vertex = heads[path[first] ^ 1]
                del path[first:]
            edges = leaving[vertex]
            while tried[vertex] < len(edges):
                edge = edges[tried[vertex]]
                if capacity[edge] and levels[heads[edge]] == levels[vertex] + 1:
                    break
                tried[vertex] += 1
            else:
                if not path:
                    return
                vertex = heads[path.pop() ^ 1]
                tried[vertex] += 1
                continue
            path.append(edge)
            vertex = heads[edge]
