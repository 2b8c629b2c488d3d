"""Many callers, one pipeline: requests that can share a call are computed together. Nothing here knows HTTP."""
