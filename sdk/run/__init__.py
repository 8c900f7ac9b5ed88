"""Running a plan: stages in order, each from an artifact to an artifact, resumable at any moment."""
