"""What differs between kinds of task; the only room that reads config fields."""
