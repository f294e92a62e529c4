"""What a run publishes: the folder that users load, its model card and record, and the Hub."""
