/** Results on the terminal and, for the table of `make check`, as JUnit XML in $REPORTS. */
export function reporters(name: string): ("default" | ["junit", { outputFile: string }])[] {
  const folder = process.env.REPORTS;
  return folder ? ["default", ["junit", { outputFile: `${folder}/${name}.xml` }]] : ["default"];
}
