"""Jobs: a recording is accepted at once and transcribed later; nothing accepted is lost by a restart."""
