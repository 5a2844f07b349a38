"""From weights to files that run without this repository. common.export_table lists the formats."""
