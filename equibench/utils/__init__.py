"""What is about no stage of the flow: files, downloads, the cache, digests, progress, random numbers."""
