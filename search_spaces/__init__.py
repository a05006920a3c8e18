"""What to try: finite spaces of schedules."""
