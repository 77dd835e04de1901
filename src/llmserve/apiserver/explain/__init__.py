"""What is remembered of each request: written while it runs, kept for a while, shown to who asks why.

Records.open -> Handle (one HTTP request) -> SequenceRecord (each sequence of it) -> closed, and kept
"""
