#!/usr/bin/env python3
"""Writes a recording of instruments that do not exist, the same one every time, to standard output.

usage: scripts/sample_recording.py | gzip -9n > recordings/sample_20260101.gz
"""
import json
import random

SECONDS = 60
START_NS = 1_767_225_600 * 1_000_000_000  # 2026-01-01
INSTRUMENTS = {"simabc": 102.5, "simdef": 8_410.0, "simxyz": 0.73}


def level(price, dice):
    return [f"{price:.4f}", f"{dice.expovariate(0.2):.3f}"]


def main():
    dice = random.Random(2026)
    prices = dict(INSTRUMENTS)
    updates = {name: 1000 for name in prices}
    now_ns = START_NS
    while now_ns < START_NS + SECONDS * 1_000_000_000:
        # Quiet for a moment, then several at once: as markets are.
        now_ns += int(dice.expovariate(1 / 60e6))
        name = dice.choice(sorted(prices))
        for _ in range(dice.choice([1, 1, 1, 2, 5])):
            now_ns += int(dice.expovariate(1 / 300e3))
            prices[name] *= 1 + dice.gauss(0, 2e-4)
            price, step = prices[name], prices[name] * 1e-4
            updates[name] += 1
            kind = dice.choice(["trade", "bookTicker", "bookTicker", "depth"])
            data = {"simulated": True, "s": name.upper(), "E": now_ns // 1_000_000, "u": updates[name]}
            if kind == "trade":
                data["p"], data["q"] = level(price, dice)
                data["m"] = dice.random() < 0.5
            elif kind == "bookTicker":
                (data["b"], data["B"]), (data["a"], data["A"]) = level(price - step, dice), level(price + step, dice)
            else:
                data["b"] = [level(price - step * (i + 1), dice) for i in range(dice.randrange(1, 8))]
                data["a"] = [level(price + step * (i + 1), dice) for i in range(dice.randrange(1, 8))]
            message = {"stream": f"{name}@{kind}", "data": data}
            print(now_ns, json.dumps(message, separators=(",", ":")))


main()
