"""Images in and out, rain made on photographs, and the batches that training reads."""
