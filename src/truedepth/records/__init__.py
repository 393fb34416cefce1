"""What we write and read: whole files, strict YAML, schemas, journals of interrupted jobs, and how far a job is."""
