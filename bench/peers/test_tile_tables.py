"""Checks which tiles the peers' schedules are given to choose among: wants neither PyTorch nor a GPU.

    python test_tile_tables.py
"""

import sys
import unittest
from types import ModuleType
from unittest.mock import MagicMock

sys.modules["torch"] = MagicMock(spec=ModuleType("torch"), __name__="torch", Tensor=MagicMock())

from peer import Shape  # noqa: E402
from tile_tables import FIELDS, H100, H200, MOST_CANDIDATES, candidates, default_tile, fits, tuned  # noqa: E402

QWEN = Shape("qwen3-30b-a3b", 128, 8, 2048, 768, True)
MIXTRAL = Shape("mixtral-8x7b", 8, 2, 4096, 14336, True)
LARGE = Shape("large", 32, 4, 2048, 4096, True)
UNKNOWN = Shape("unknown", 48, 4, 1024, 512, True)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
CARDS = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")


def tile_of(setting):
    return tuple(setting[field] for field in FIELDS)


class Candidates(unittest.TestCase):
    def test_begin_with_what_vllm_would_run(self):
        for card, tables in zip(CARDS, (H100, H200)):
            self.assertEqual(tile_of(candidates(QWEN, 1024, card)[0]), tables[128, 768][1024])
            self.assertEqual(tile_of(candidates(QWEN, 16384, card)[0]), tables[128, 768][4096])
            self.assertEqual(tile_of(candidates(LARGE, 64, card)[0]), default_tile(LARGE, 64))

    def test_are_few_distinct_and_fit(self):
        for shape in (QWEN, LARGE, UNKNOWN):
            for tokens in TOKENS:
                tiles = [tile_of(setting) for setting in candidates(shape, tokens, CARDS[0])]
                self.assertTrue(1 < len(tiles) <= MOST_CANDIDATES)
                self.assertEqual(len(set(tiles)), len(tiles))
                for tile in tiles:
                    self.assertTrue(fits(*tile[:3], tile[5]), tile)

    def test_hold_the_best_that_was_found_for_every_routing_on_every_card(self):
        for shape in (QWEN, LARGE, MIXTRAL):
            for tokens in TOKENS:
                routings = 2 if tokens in (256, 1024) else 1
                own, other = (tuned("vllm-schedule", shape, tokens, card)[:routings] for card in CARDS)
                for card in CARDS:
                    tried = candidates(shape, tokens, card)
                    for best in [*own, *other]:
                        self.assertIn(best, tried, (shape, tokens, card))

    def test_begin_with_what_was_found_on_the_card_itself(self):
        found = {card: tuned("scattermoe-schedule", MIXTRAL, 64, card) for card in CARDS}
        self.assertNotEqual(found[CARDS[0]], found[CARDS[1]])
        self.assertEqual(found[CARDS[0]][0], found[CARDS[1]][1])
        self.assertEqual(tuned("scattermoe-schedule", MIXTRAL, 64, "another card"), found[CARDS[0]])

    def test_nothing_was_found_for_what_was_not_looked_at(self):
        self.assertEqual(tuned("vllm-schedule", UNKNOWN, 64, CARDS[0]), [])
        self.assertEqual(tuned("scattermoe-schedule", LARGE, 4, CARDS[0]), [])
        self.assertNotEqual(tuned("scattermoe-schedule", LARGE, 16, CARDS[0]), [])


if __name__ == "__main__":
    unittest.main()
