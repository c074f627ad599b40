"""Files: written whole or not at all, in a folder or in a bucket, found by one walker. No machine learning."""
