"""The store of records: the database, its schema, exchange formats, standings of problems."""
