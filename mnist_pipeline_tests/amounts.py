"""How often the tests of races, kills, load and noise try: a little by default, more where a variable says so."""

import os

KILLS = int(os.environ.get("KILLS", "15"))
RACE_ROUNDS = int(os.environ.get("RACE_ROUNDS", "12"))
RACES = int(os.environ.get("RACES", "3"))
FUZZ_IMAGES = int(os.environ.get("FUZZ_IMAGES", "1000"))
SOAK_SECONDS = int(os.environ.get("SOAK_SECONDS", "8"))
TRIALS = int(os.environ.get("TRIALS", "6"))
REFUSED_ROUNDS = int(os.environ.get("REFUSED_ROUNDS", "3"))
