"""The record of each request: written while it runs, kept for a while, shown by `llmserve explain`.

RequestRecords.open -> RecordHandle (one HTTP request) -> SequenceRecord (each sequence) -> closed, kept
"""
