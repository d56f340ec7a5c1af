"""What is promised to patients: noise on what is learned of each, and a durable account of it at the site."""
