"""Places that hold whole copies: the store, the hub cache, mounted drives, S3, the Hub. base.py says what each can do."""
