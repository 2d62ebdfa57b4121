"""How sources reach the microphones."""
