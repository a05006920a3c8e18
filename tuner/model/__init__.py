"""What records of many problems say about a problem without any: a model of their times."""
