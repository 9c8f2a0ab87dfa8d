"""The Ray job that mines proposals from images, shard by shard (floor 2: no torch)."""
