"""What people have on disk to prepared data: look at each item, choose, copy those that are chosen."""
