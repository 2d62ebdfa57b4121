"""Audio VAEs: train a prior on recordings alone, encode, resynthesise and score sound with it."""
