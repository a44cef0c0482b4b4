"""S3: objects, streamed reads and writes, and a file system for pyarrow."""
