"""Checks which tiles the peers' schedules are given to choose among: wants neither PyTorch nor a GPU.

    python test_tile_tables.py
"""

import sys
import unittest
from types import ModuleType
from unittest.mock import MagicMock, patch

sys.modules["torch"] = MagicMock(spec=ModuleType("torch"), __name__="torch", Tensor=MagicMock())

from peer import Shape  # noqa: E402
from tile_tables import (  # noqa: E402
    BOTH_HEIGHTS_FROM,
    FIELDS,
    H100,
    H200,
    MOST_CANDIDATES,
    TUNED_KEPT,
    candidates,
    default_tile,
    fits,
    tuned,
)

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
        for shape in (QWEN, LARGE, MIXTRAL, UNKNOWN):
            for tokens in TOKENS:
                for card in CARDS:
                    tiles = [tile_of(setting) for setting in candidates(shape, tokens, card)]
                    self.assertTrue(1 < len(tiles) <= MOST_CANDIDATES)
                    self.assertEqual(len(set(tiles)), len(tiles))
                    for tile in tiles:
                        self.assertTrue(fits(*tile[:3], tile[5]), tile)

    def test_have_both_heights_where_loads_may_differ(self):
        for shape in (QWEN, LARGE, MIXTRAL, UNKNOWN):
            for tokens in TOKENS:
                for card in CARDS:
                    heights = {setting["BLOCK_M"] for setting in candidates(shape, tokens, card)}
                    if tokens >= BOTH_HEIGHTS_FROM:
                        self.assertLessEqual({64, 128}, heights, (shape, tokens, card))

    def test_hold_the_best_of_every_routing_and_card(self):
        for shape in (QWEN, LARGE, MIXTRAL):
            for tokens in TOKENS:
                routings = 2 if tokens in (256, 1024) else 1
                for card in CARDS:
                    best, others = tuned("vllm-schedule", shape, tokens, card)
                    self.assertEqual(len(best), routings * len(CARDS))
                    self.assertEqual(len(others), (TUNED_KEPT - 1) * len(best))
                    tried = candidates(shape, tokens, card)
                    for setting in best:
                        self.assertIn(setting, tried, (shape, tokens, card))

    def test_stand_in_the_order_of_what_is_known_about_them(self):
        tiles = [tile_of(setting) for setting in candidates(MIXTRAL, 64, "NVIDIA H200")]
        published, h100 = (32, 128, 128, 64, 4, 3), (32, 128, 128, 1, 4, 5)
        self.assertEqual(tiles[:2], [published, h100], "the H200's own best is the published one")
        self.assertEqual(tile_of(tuned("vllm-schedule", MIXTRAL, 64, "NVIDIA H200")[0][0]), published)
        self.assertIn((64, 128, 128, 1, 8, 4), tiles, "an H100's second best")
        self.assertEqual(tiles[-1], (16, 256, 128, 1, 8, 2), "a guess")

    def test_begin_with_what_was_found_on_the_card_itself(self):
        h100, h200 = (tuned("scattermoe-schedule", MIXTRAL, 64, card)[0] for card in CARDS)
        self.assertNotEqual(h100, h200)
        self.assertEqual(h100, list(reversed(h200)))
        self.assertEqual(tuned("scattermoe-schedule", MIXTRAL, 64, "another card")[0], h100)

    def test_nothing_was_found_for_what_was_not_looked_at(self):
        for peer, shape, tokens in (("vllm-schedule", UNKNOWN, 64), ("scattermoe-schedule", LARGE, 4)):
            self.assertEqual(tuned(peer, shape, tokens, CARDS[0]), ([], []))

    def test_a_cell_of_which_few_tiles_were_found_right_has_fewer(self):
        cell = {"peer": "vllm-schedule", "shape": "unknown", "tokens": 64, "routing": "uniform"}
        one = {"us": 1.0, "setting": {"BLOCK_M": 16}}
        with patch("tile_tables._tuned_cells", lambda card: [[cell | {"best": [one]}]]):
            self.assertEqual(tuned("vllm-schedule", UNKNOWN, 64, CARDS[0]), ([one["setting"]], []))


if __name__ == "__main__":
    unittest.main()
