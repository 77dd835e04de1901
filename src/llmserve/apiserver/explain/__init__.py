"""What is remembered of each request: written while it runs, kept for a while, shown to who asks why.

RequestRecords.open -> RecordHandle (one HTTP request) -> SequenceRecord (each sequence) -> closed, kept
"""
