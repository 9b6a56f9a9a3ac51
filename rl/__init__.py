"""Learning: trains policies offline and online; the only room where torch may be imported."""
