"""What runs how: tasks, the forms each could take, and the choice among them."""
