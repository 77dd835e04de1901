"""The object tier: blobs in a bucket of S3, Azure, GCS or anything that speaks their languages (obstore).

Blobs are gathered into *packs*: immutable objects of about 64 MiB that end with their own index (`layout`).
One PUT makes a pack visible as a whole, or not at all; so a write is DONE when its pack is up, and a crash
loses only what was not DONE. A read asks for ranges of packs, neighbours together, many at a time.

Whose packs: each kvmanager writes below `<url>/<owner>/`, and deletes and rewrites only there. When it
opens it reads the index of every owner's packs, and from then on finds and reads their blobs like its own;
`refresh` looks again. It learns of a pack that its owner has deleted by not finding it: a miss. Two owners
may hold the same blob; capacity and `usage` are about the own packs.

What is removed stays in its pack as garbage until that has none but garbage and is deleted, or enough of it
and is rewritten. Removals of the last second before a kill may be undone by it, unless `settle_removals` was
DONE after them: such a blob is found again, and is what it was.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY,
GOOGLE_SERVICE_ACCOUNT and so on) or from the machine's own identity. They are in no setting, and what a
server says is cut down to its code before it gets into a reason.

A bucket that is away: requests are retried with backoff up to a deadline, then refused at once until it is
back (`bucket.BucketGate`). To the caller all this is FAILED with a reason, or MISSING.
"""

from llmserve.kvstore.tiers.object.settings import ObjectSettings, RequestLimits, RetryPolicy
from llmserve.kvstore.tiers.object.tier import ObjectTier, object_tier

__all__ = ["ObjectSettings", "ObjectTier", "RequestLimits", "RetryPolicy", "object_tier"]
