"""`/v1/files` and `/v1/batches`, in OpenAI's form: requests in files, which run in the background.

    routes -> FileStore, BatchStore -> BatchStorage (a directory or a bucket)
    BatchService: finds batches that nobody runs, claims each -> BatchRun -> the gate of this apiserver

One apiserver at a time has the claim of a batch. It writes each result to the batch's journal before the
result counts; whoever takes the batch over reads the journal and runs only what is not in it.
"""
